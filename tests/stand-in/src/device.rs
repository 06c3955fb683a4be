//! The device that the stand-in plays, and the handle by which tests shape it.

use std::ffi::{c_char, c_int};
use std::path::PathBuf;
use std::sync::OnceLock;

use libloading::Library;

use crate::counts::{Class, Counts};

/// What the driver says of its device.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub count: c_int,
    pub driver: c_int,
    /// The newest PTX that the driver reads.
    pub ptx: (u32, u32),
    /// Ten times the compute capability.
    pub capability: u32,
    pub memory: usize,
    pub seed: u64,
    /// The launch, counted from 1, at which the device is lost.
    pub lost_at: Option<u64>,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            count: 1,
            driver: 12_020,
            ptx: (8, 2),
            capability: 80,
            memory: 1 << 30,
            seed: 1,
            lost_at: None,
        }
    }
}

/// Properties by number, as they cross the library's C interface.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
enum Property {
    Capability = 0,
    Memory = 1,
    Driver = 2,
    Count = 3,
    LostAt = 4,
    Seed = 5,
    Reset = 6,
    Ptx = 7,
}

impl Device {
    pub fn set(&mut self, what: c_int, value: u64) {
        match what {
            0 => self.capability = value as u32,
            1 => self.memory = value as usize,
            2 => self.driver = value as c_int,
            3 => self.count = value as c_int,
            4 => self.lost_at = Some(value),
            5 => self.seed = value,
            7 => self.ptx = ((value / 10) as u32, (value % 10) as u32),
            _ => *self = Self::default(),
        }
    }

    const fn limits(&self) -> Limits {
        let (threads, blocks, shared) = match self.capability {
            ..80 => (1024, 16, 64),
            80..86 => (2048, 32, 164),
            86..89 => (1536, 16, 100),
            89..90 => (1536, 24, 100),
            90.. => (2048, 32, 228),
        };
        // From 8.0 on each block takes a KiB for the system.
        let reserved = if self.capability < 80 { 0 } else { 1024 };
        Limits { threads, blocks, shared: shared * 1024, reserved }
    }

    /// Shared memory of a block that asks for more than [`SHARED`].
    pub const fn most_shared(&self) -> u32 {
        let limits = self.limits();
        limits.shared - limits.reserved
    }

    /// How many blocks a multiprocessor holds at a time.
    pub fn blocks(&self, threads: c_int, shared: usize) -> c_int {
        let Limits { threads: most_threads, blocks, shared: most_shared, reserved } = self.limits();
        let warps = (threads.max(1) as u32).div_ceil(32);
        let by_shared = most_shared as usize / (shared + reserved as usize).max(1);
        blocks.min(most_threads / 32 / warps).min(by_shared as u32) as c_int
    }

    /// An attribute by the driver's number; 0 for those that nobody asks for.
    pub fn attribute(&self, number: c_int) -> c_int {
        let limits = self.limits();
        let found = match number {
            // Threads of a block, and its dimensions.
            1..=3 => 1024,
            4 => 64,
            // Dimensions of the grid.
            5 => i32::MAX as u32,
            6 | 7 => 65_535,
            // Shared memory of a block, constant memory, the warp.
            8 => SHARED,
            9 => 65_536,
            10 => 32,
            // Registers of a block and of a multiprocessor, multiprocessors.
            12 | 82 => 65_536,
            16 => 4,
            39 => limits.threads,
            75 => self.capability / 10,
            76 => self.capability % 10,
            81 => limits.shared,
            97 => self.most_shared(),
            106 => limits.blocks,
            111 => limits.reserved,
            _ => 0,
        };
        found as c_int
    }
}

/// Shared memory of a block that does not ask for more.
pub(crate) const SHARED: u32 = 48 << 10;

/// What a multiprocessor holds at a time.
struct Limits {
    threads: u32,
    blocks: u32,
    shared: u32,
    /// Shared memory that each block takes besides its own.
    reserved: u32,
}

/// What the tests run on.
#[derive(Debug)]
pub enum Gpu {
    /// A driver with a device was there before: nothing was loaded.
    Real,
    /// The stand-in.
    StandIn(StandIn),
}

/// The stand-in's driver, loaded into this process.
#[derive(Debug)]
pub struct StandIn {
    library: Library,
}

/// Loads the stand-in in place of a driver, once in a process, unless there is a driver that
/// finds a device.
///
/// # Panics
/// Where the stand-in's library is not beside the test that asks for it.
pub fn load() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        if has_device() {
            return Gpu::Real;
        }
        let path = beside().expect("the library is built beside the tests that depend on it");
        // SAFETY: the library is this crate's own, and has no initialisers.
        let library = unsafe {
            use libloading::os::unix::{Library as Unix, RTLD_GLOBAL, RTLD_NOW};
            Unix::open(Some(&path), RTLD_NOW | RTLD_GLOBAL)
        };
        Gpu::StandIn(StandIn { library: library.expect("the library loads").into() })
    })
}

/// The stand-in.
///
/// # Panics
/// On a machine with a GPU, and as [`load`].
pub fn stand_in() -> &'static StandIn {
    match load() {
        Gpu::StandIn(stand_in) => stand_in,
        Gpu::Real => panic!("this test shapes the device: it runs without a GPU only"),
    }
}

fn has_device() -> bool {
    // SAFETY: loading the driver and asking it for its devices is what every program does.
    unsafe {
        let Ok(driver) = Library::new("libcuda.so.1") else { return false };
        type Init = unsafe extern "C" fn(u32) -> c_int;
        type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
        let (Ok(init), Ok(count)) =
            (driver.get::<Init>(b"cuInit"), driver.get::<Count>(b"cuDeviceGetCount"))
        else {
            return false;
        };
        let mut devices = 0;
        init(0) == 0 && count(&mut devices) == 0 && devices > 0
    }
}

/// The library beside the test executable, or one folder up.
fn beside() -> Option<PathBuf> {
    let executable = std::env::current_exe().ok()?;
    let folders = executable.ancestors().skip(1).take(3);
    let mut paths =
        folders.flat_map(|f| [f.join("libsepal_stand_in.so"), f.join("deps/libsepal_stand_in.so")]);
    paths.find(|path| path.exists())
}

impl StandIn {
    fn set(&self, what: Property, value: u64) {
        // SAFETY: the function is this crate's, of this type.
        unsafe {
            let set = self
                .library
                .get::<unsafe extern "C" fn(c_int, u64) -> c_int>(b"sepal_stand_in_set");
            set.expect("the stand-in exports it")(what as c_int, value);
        }
    }

    /// Back to a device of compute capability 8.0 with 1 GiB, a driver of CUDA 12.2, no fault.
    pub fn reset(&self) {
        self.set(Property::Reset, 0);
    }

    /// Ten times the compute capability.
    pub fn capability(&self, tenfold: u32) {
        self.set(Property::Capability, tenfold.into());
    }

    /// Bytes of device memory.
    pub fn memory(&self, bytes: usize) {
        self.set(Property::Memory, bytes as u64);
    }

    /// The driver's version: 12020 is CUDA 12.2.
    pub fn driver(&self, version: u32) {
        self.set(Property::Driver, version.into());
    }

    /// Ten times the newest PTX version that the driver reads.
    pub fn ptx(&self, tenfold: u32) {
        self.set(Property::Ptx, tenfold.into());
    }

    /// How many devices there are.
    pub fn devices(&self, count: u32) {
        self.set(Property::Count, count.into());
    }

    /// Loses the device at a launch, counted from 1 from now on.
    pub fn lose_at(&self, launch: u64) {
        self.set(Property::LostAt, launch);
    }

    /// The seed of the orders in which threads and blocks take turns.
    pub fn seed(&self, seed: u64) {
        self.set(Property::Seed, seed);
    }

    /// What ran since the device was last shaped.
    pub fn counts(&self) -> Counts {
        let count = |number: usize| {
            let mut count = 0;
            // SAFETY: the function is this crate's, of this type.
            unsafe {
                let get = self
                    .library
                    .get::<unsafe extern "C" fn(c_int, *mut u64) -> c_int>(b"sepal_stand_in_count");
                get.expect("the stand-in exports it")(number as c_int, &mut count);
            }
            count
        };
        let mut counts = Counts::default();
        for (number, (class, _)) in Class::ALL.iter().enumerate() {
            counts.add(*class, count(number));
        }
        counts.launch(count(Class::ALL.len()));
        counts
    }

    /// What went wrong last, in words: a fault, or a call that was refused; empty where nothing
    /// did.
    pub fn fault(&self) -> String {
        let mut text = [0 as c_char; 1024];
        // SAFETY: the function is this crate's, of this type, and writes at most `len` bytes.
        unsafe {
            let get = self
                .library
                .get::<unsafe extern "C" fn(*mut c_char, usize) -> c_int>(b"sepal_stand_in_fault");
            get.expect("the stand-in exports it")(text.as_mut_ptr(), text.len());
            std::ffi::CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
        }
    }
}
