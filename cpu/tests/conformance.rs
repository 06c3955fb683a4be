//! The suite that every backend passes.

use sepal_core::backend::Device;
use sepal_cpu::{Cpu, OnCpu};

sepal_conformance::suite!(cpu, |words| Cpu::new(words));
sepal_conformance::suite!(three_threads, |words| {
    OnCpu::with_threads(3).expect("the system gives threads").open(words).expect("memory was lent")
});
