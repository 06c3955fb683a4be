//! Without a driver: a process of its own, since a library that is loaded stays.

use sepal_cuda::{OnCuda, OpenError};

#[test]
fn a_machine_without_a_driver_is_told_so() {
    match OnCuda::open(0) {
        Err(OpenError::NoDriver) => {}
        // A machine that has one.
        Ok(_) | Err(OpenError::NoDevice { .. }) => return,
        Err(other) => panic!("{other}"),
    }
    let said = OpenError::NoDriver.to_string();
    assert!(said.contains("libcuda.so"), "{said}");
}
