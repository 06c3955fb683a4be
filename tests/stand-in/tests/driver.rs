//! The driver's interface, as its callers see it: through the loader.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, PoisonError};

use libloading::Library;
use sepal_stand_in::{Class, Gpu, StandIn};

/// Doubles each of `count` words.
fn doubling(version: &str, target: &str) -> String {
    format!(
        ".version {version}
        .target {target}
        .address_size 64
        .visible .global .align 4 .b32 steps[2] = {{3, 4}};
        .visible .entry double_it(.param .u64 data, .param .u32 count)
        {{
            .reg .pred %p<2>;
            .reg .b32 %r<4>;
            .reg .b64 %rd<4>;
            ld.param.u64 %rd1, [data];
            ld.param.u32 %r1, [count];
            mov.u32 %r2, %tid.x;
            setp.ge.u32 %p1, %r2, %r1;
            @%p1 ret;
            mul.wide.u32 %rd2, %r2, 4;
            add.s64 %rd3, %rd1, %rd2;
            ld.global.u32 %r3, [%rd3];
            shl.b32 %r3, %r3, 1;
            st.global.u32 [%rd3], %r3;
            ret;
        }}\0"
    )
}

const SUCCESS: c_int = 0;

/// Calls a function of the driver.
macro_rules! call {
    ($driver:expr, $name:ident($($ty:ty),*) $(, $arg:expr)*) => {{
        // SAFETY: the function has this type, and its pointers are to variables of the caller.
        unsafe {
            let function = $driver
                .get::<unsafe extern "C" fn($($ty),*) -> c_int>(stringify!($name).as_bytes());
            function.expect(stringify!($name))($($arg),*)
        }
    }};
}

/// The driver that the loader finds, and the stand-in behind it, for one test at a time.
fn with_driver(test: impl FnOnce(&Library, &StandIn)) {
    static ONE: Mutex<()> = Mutex::new(());
    let _guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Gpu::StandIn(stand_in) = sepal_stand_in::load() else { return };
    stand_in.reset();
    // SAFETY: the stand-in has this name, and is loaded already.
    let driver = unsafe { Library::new("libcuda.so") }.expect("the loader finds the stand-in");
    call!(driver, cuCtxSetCurrent(usize), 0x1000);
    test(&driver, stand_in);
    stand_in.reset();
}

fn load(driver: &Library, ptx: &str) -> Result<usize, c_int> {
    let mut module = 0;
    let image = ptx.as_ptr().cast::<c_void>();
    match call!(driver, cuModuleLoadData(*mut usize, *const c_void), &mut module, image) {
        SUCCESS => Ok(module),
        status => Err(status),
    }
}

fn function(driver: &Library, module: usize, name: &CStr) -> Result<usize, c_int> {
    let mut found = 0;
    let status = call!(
        driver,
        cuModuleGetFunction(*mut usize, usize, *const c_char),
        &mut found,
        module,
        name.as_ptr()
    );
    if status == SUCCESS { Ok(found) } else { Err(status) }
}

fn launch(driver: &Library, function: usize, data: u64, count: u32, shared: u32) -> c_int {
    let params = [(&raw const data).cast::<c_void>(), (&raw const count).cast()];
    type Params = *const *const c_void;
    call!(
        driver,
        cuLaunchKernel(
            usize, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, usize, Params, Params
        ),
        function,
        1,
        1,
        1,
        32,
        1,
        1,
        shared,
        0,
        params.as_ptr(),
        std::ptr::null()
    )
}

fn allocate(driver: &Library, bytes: usize) -> Result<u64, c_int> {
    let mut at = 0;
    match call!(driver, cuMemAlloc_v2(*mut u64, usize), &mut at, bytes) {
        SUCCESS => Ok(at),
        status => Err(status),
    }
}

fn read(driver: &Library, at: u64, words: &mut [u32]) -> c_int {
    let (to, len) = (words.as_mut_ptr().cast::<c_void>(), size_of_val(words));
    call!(driver, cuMemcpyDtoH_v2(*mut c_void, u64, usize), to, at, len)
}

#[test]
fn a_kernel_from_its_source_to_its_result() {
    with_driver(|driver, stand_in| {
        let module = load(driver, &doubling("8.2", "sm_80")).unwrap();
        let double = function(driver, module, c"double_it").unwrap();
        assert_eq!(function(driver, module, c"other"), Err(500));
        let at = allocate(driver, 16).unwrap();
        assert_eq!(call!(driver, cuMemsetD32_v2(u64, c_uint, usize), at, 21, 3), SUCCESS);
        assert_eq!(launch(driver, double, at, 3, 0), SUCCESS);
        let mut found = [0; 3];
        assert_eq!(read(driver, at, &mut found), SUCCESS);
        assert_eq!(found, [42; 3]);
        assert_eq!(stand_in.counts().of(Class::GlobalStore), 3);

        let (mut array, mut bytes) = (0, 0);
        let status = call!(
            driver,
            cuModuleGetGlobal_v2(*mut u64, *mut usize, usize, *const c_char),
            &mut array,
            &mut bytes,
            module,
            c"steps".as_ptr()
        );
        assert_eq!((status, bytes), (SUCCESS, 8));
        assert_eq!(read(driver, array, &mut found[..2]), SUCCESS);
        assert_eq!(found[..2], [3, 4]);
        assert_eq!(call!(driver, cuModuleUnload(usize), module), SUCCESS);
        assert_eq!(launch(driver, double, at, 3, 0), 400, "its module is gone");
        assert_eq!(call!(driver, cuMemFree_v2(u64), at), SUCCESS);
    });
}

#[test]
fn modules_that_the_device_does_not_take() {
    with_driver(|driver, stand_in| {
        assert_eq!(load(driver, &doubling("8.3", "sm_80")), Err(222));
        assert!(stand_in.fault().contains("8.3"), "{}", stand_in.fault());
        assert_eq!(load(driver, &doubling("8.2", "sm_90")), Err(209));
        stand_in.capability(90);
        assert!(load(driver, &doubling("8.2", "sm_90")).is_ok());
        assert_eq!(load(driver, &doubling("8.2", "sm_80").replace("shl", "shlx")), Err(218));
        assert!(stand_in.fault().contains("shlx.b32 is not known"), "{}", stand_in.fault());
    });
}

#[test]
fn memory_that_is_not_there() {
    with_driver(|driver, stand_in| {
        stand_in.memory(1 << 20);
        let (mut free, mut total) = (0, 0);
        let status = call!(driver, cuMemGetInfo_v2(*mut usize, *mut usize), &mut free, &mut total);
        assert_eq!((status, total), (SUCCESS, 1 << 20));
        let all = allocate(driver, free).unwrap();
        assert_eq!(allocate(driver, 1), Err(2));
        assert_eq!(call!(driver, cuMemFree_v2(u64), all), SUCCESS);
        assert_eq!(call!(driver, cuMemFree_v2(u64), all), 1, "it is gone");
        let at = allocate(driver, 8).unwrap();
        assert_eq!(call!(driver, cuMemsetD8_v2(u64, u8, usize), at, 0, 9), 1, "one too many");
        assert!(stand_in.fault().contains("out of bounds"), "{}", stand_in.fault());
        assert_eq!(call!(driver, cuMemFree_v2(u64), at), SUCCESS);
    });
}

#[test]
fn shared_memory_has_to_be_asked_for() {
    with_driver(|driver, stand_in| {
        let attribute = |number: c_int| {
            let mut value = 0;
            let status = call!(
                driver,
                cuDeviceGetAttribute(*mut c_int, c_int, c_int),
                &mut value,
                number,
                0
            );
            assert_eq!(status, SUCCESS);
            value
        };
        for (capability, most) in [(75, 65_536), (80, 166_912), (86, 101_376), (90, 232_448)] {
            stand_in.capability(capability);
            assert_eq!(attribute(97), most, "sm_{capability}");
            assert_eq!((attribute(75) * 10 + attribute(76)) as u32, capability);
        }
        stand_in.capability(80);
        let module = load(driver, &doubling("8.2", "sm_80")).unwrap();
        let double = function(driver, module, c"double_it").unwrap();
        let allow =
            |bytes| call!(driver, cuFuncSetAttribute(usize, c_int, c_int), double, 8, bytes);
        assert_eq!(launch(driver, double, 0, 0, 48 << 10), SUCCESS);
        assert_eq!(launch(driver, double, 0, 0, 49 << 10), 1);
        assert_eq!(allow(200_000), 1, "more than there is");
        assert_eq!(allow(100_000), SUCCESS);
        assert_eq!(launch(driver, double, 0, 0, 100_000), SUCCESS);
        let mut blocks = 0;
        let status = call!(
            driver,
            cuOccupancyMaxActiveBlocksPerMultiprocessor(*mut c_int, usize, c_int, usize),
            &mut blocks,
            double,
            256,
            40_000
        );
        assert_eq!((status, blocks), (SUCCESS, 4));
    });
}

#[test]
fn a_fault_loses_the_device() {
    with_driver(|driver, stand_in| {
        let module = load(driver, &doubling("8.2", "sm_80")).unwrap();
        let double = function(driver, module, c"double_it").unwrap();
        assert_eq!(launch(driver, double, 0, 1, 0), 700);
        assert!(stand_in.fault().contains("double_it, block (0, 0, 0)"), "{}", stand_in.fault());
        assert_eq!(call!(driver, cuCtxSynchronize()), 700);
        assert_eq!(allocate(driver, 8), Err(700));
        stand_in.reset();
        assert_eq!(call!(driver, cuCtxSynchronize()), SUCCESS);
        stand_in.lose_at(2);
        assert_eq!(launch(driver, double, 0, 0, 0), SUCCESS);
        assert_eq!(launch(driver, double, 0, 0, 0), 719);
        assert_eq!(launch(driver, double, 0, 0, 0), 719);
        let mut name = std::ptr::null();
        let status = call!(driver, cuGetErrorName(c_int, *mut *const c_char), 719, &mut name);
        assert_eq!(status, SUCCESS);
        // SAFETY: the driver gave a string.
        assert_eq!(unsafe { CStr::from_ptr(name) }, c"CUDA_ERROR_LAUNCH_FAILED");
    });
}

#[test]
fn copies_from_pinned_memory_are_made_when_they_are_waited_for() {
    with_driver(|driver, stand_in| {
        let new = |event: bool| {
            let mut handle = 0;
            let status = match event {
                true => call!(driver, cuEventCreate(*mut usize, c_uint), &mut handle, 0),
                false => call!(driver, cuStreamCreate(*mut usize, c_uint), &mut handle, 0),
            };
            assert_eq!(status, SUCCESS);
            handle
        };
        let (copies, kernels, event) = (new(false), new(false), new(true));
        let mut host: *mut c_void = std::ptr::null_mut();
        let status =
            call!(driver, cuMemHostAlloc(*mut *mut c_void, usize, c_uint), &mut host, 8, 0);
        assert_eq!(status, SUCCESS);
        let host = host.cast::<u64>();
        let at = allocate(driver, 8).unwrap();
        let copy = |value: u64| {
            // SAFETY: the memory is 8 bytes, aligned, and the host's.
            unsafe { host.write(value) };
            let (to, from) = (at, host.cast_const().cast());
            let status = call!(
                driver,
                cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, usize),
                to,
                from,
                8,
                copies
            );
            assert_eq!(status, SUCCESS);
            assert_eq!(call!(driver, cuEventRecord(usize, usize), event, copies), SUCCESS);
        };
        let found = || {
            let mut found = 0u64;
            let into = (&raw mut found).cast();
            let status = call!(
                driver,
                cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, usize),
                into,
                at,
                8,
                kernels
            );
            (status == SUCCESS).then_some(found)
        };
        let wait = || {
            call!(driver, cuStreamWaitEvent(usize, usize, c_uint), kernels, event, 0);
        };
        copy(1);
        wait();
        assert_eq!(found(), Some(1));
        // The host's memory is read late: what is written there meanwhile is what is copied.
        copy(2);
        // SAFETY: as above.
        unsafe { host.write(3) };
        assert_eq!(call!(driver, cuEventSynchronize(usize), event), SUCCESS);
        assert_eq!(found(), Some(3));
        // Nobody waited: the place counts as not written, and the device is lost.
        copy(4);
        assert_eq!(found(), None);
        assert!(stand_in.fault().contains("was not written"), "{}", stand_in.fault());
        stand_in.reset();
        wait();
        assert_eq!(found(), Some(4));
        assert_eq!(call!(driver, cuMemFreeHost(*mut c_void), host.cast()), SUCCESS);
        assert_eq!(call!(driver, cuMemFree_v2(u64), at), SUCCESS);
    });
}
