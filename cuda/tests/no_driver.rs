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

/// A child of this test, in which the loader finds another library under the driver's name.
#[cfg(target_os = "linux")]
#[test]
fn a_driver_without_a_function_is_told_by_the_functions_name() {
    if std::env::var_os("SEPAL_CHILD").is_some() {
        assert_eq!(OnCuda::open(0).map(drop), Err(OpenError::Symbol("cuInit")));
        return;
    }
    let maps = std::fs::read_to_string("/proc/self/maps").expect("this is Linux");
    let library = maps.split_whitespace().find(|path| path.contains("/libc.so"));
    let Some(library) = library else { return };
    let folder = std::env::temp_dir().join(format!("sepal-no-driver-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::os::unix::fs::symlink(library, folder.join("libcuda.so")).expect("a link");
    let name = "a_driver_without_a_function_is_told_by_the_functions_name";
    let child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", name])
        .env("SEPAL_CHILD", "1")
        .env("LD_LIBRARY_PATH", &folder)
        .output();
    std::fs::remove_dir_all(&folder).expect("it is this test's own");
    let child = child.expect("it runs");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}
