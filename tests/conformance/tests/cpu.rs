//! The CPU backend with each set of instructions, held to the reference's specification. A machine
//! that lacks a set runs the best that it has.

use sepal_cpu::{Cpu, Instructions};

/// The set of a name, or the best of this machine.
fn set(name: &str) -> Instructions {
    Instructions::all().find(|set| set.name() == name).unwrap_or_else(Instructions::best)
}

sepal_conformance::suite!(cpu, |words| Cpu::new(words));
sepal_conformance::suite!(cpu_portable, |words| {
    Cpu::new(words).with_instructions(Instructions::PORTABLE)
});
sepal_conformance::suite!(cpu_avx2, |words| Cpu::new(words).with_instructions(set("avx2")));
