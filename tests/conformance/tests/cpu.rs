//! The CPU backend, held to the reference's specification.

use sepal_cpu::Cpu;

sepal_conformance::suite!(cpu, |words| Cpu::new(words));
