//! One device: its stream, its kernels, and the one place that launches them.

use core::ffi::c_void;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr,
    DriverError, PinnedHostSlice, result, sys,
};
use cudarc::nvrtc::Ptx;
use sepal_core::error::Error;

use crate::compile::{self, Compiler};
use crate::driver::{self, OLDEST_DEVICE, OpenError};

/// A device address, or none (0) where a kernel is to find nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Address(pub u64);

impl Address {
    /// No memory.
    pub const NONE: Self = Self(0);

    /// Whether there is no memory.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// `bytes` further on.
    pub const fn past(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// An argument of a kernel, of the type that the kernel declares in its place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg {
    /// A pointer.
    Address(Address),
    /// `unsigned int`, or `int`.
    U32(u32),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
}

impl Arg {
    fn pointer(&self) -> *mut c_void {
        match self {
            Self::Address(a) => (&raw const a.0).cast_mut().cast(),
            Self::U32(v) => (&raw const *v).cast_mut().cast(),
            Self::U64(v) => (&raw const *v).cast_mut().cast(),
            Self::F32(v) => (&raw const *v).cast_mut().cast(),
        }
    }
}

macro_rules! arg {
    ($($t:ty => $v:ident),*) => { $(impl From<$t> for Arg { fn from(v: $t) -> Self { Self::$v(v) } })* };
}
arg!(Address => Address, u32 => U32, u64 => U64, f32 => F32);

/// `args![a, b]`: kernel arguments of their own types.
macro_rules! args {
    ($($e:expr),* $(,)?) => { &[$($crate::gpu::Arg::from($e)),*] };
}
pub(crate) use args;

/// How many blocks of how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Blocks, x first.
    pub grid: [u32; 3],
    /// Threads of a block, in a row.
    pub block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
}

impl Launch {
    /// A thread for each of `n`, and some more in the last block.
    pub const fn over(n: u32) -> Self {
        Self { grid: [n.div_ceil(256), 1, 1], block: 256, shared: 0 }
    }

    /// A warp for each of `n`, eight a block.
    pub const fn warps(n: u32) -> Self {
        Self { grid: [n.div_ceil(8), 1, 1], block: 256, shared: 0 }
    }

    /// A block of `block` threads for each of `n`.
    pub const fn blocks(n: u32, block: u32) -> Self {
        Self { grid: [n, 1, 1], block, shared: 0 }
    }
}

/// A file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    Activation,
    Conv,
    Dense,
    Elementwise,
    Moving,
    Norm,
    Objective,
    Optim,
    Pool,
    Search,
}

impl Source {
    /// Its built-in PTX, for the newest of the built-in architectures that the device has.
    fn ptx(self, capability: u32) -> &'static str {
        let [older, newer] = self.texts().1;
        if capability >= 80 { newer } else { older }
    }

    /// What it was compiled from: the file, with the files that it includes in their places.
    pub fn code(self) -> String {
        [
            ("#include \"common.cuh\"\n", include_str!("../kernels/common.cuh")),
            ("#include \"product.cuh\"\n", include_str!("../kernels/product.cuh")),
        ]
        .into_iter()
        .fold(self.texts().0.into(), |code: String, (line, file)| code.replace(line, file))
    }

    /// The file's name.
    pub const fn name(self) -> &'static str {
        self.texts().2
    }

    const fn texts(self) -> (&'static str, [&'static str; 2], &'static str) {
        macro_rules! texts {
            ($($variant:ident => $file:literal),* $(,)?) => {
                match self {
                    $(Self::$variant => (
                        include_str!(concat!("../kernels/", $file, ".cu")),
                        [
                            include_str!(concat!("../kernels/ptx/", $file, ".75.ptx")),
                            include_str!(concat!("../kernels/ptx/", $file, ".80.ptx")),
                        ],
                        $file,
                    ),)*
                }
            };
        }
        texts! {
            Activation => "activation",
            Conv => "conv",
            Dense => "dense",
            Elementwise => "elementwise",
            Moving => "moving",
            Norm => "norm",
            Objective => "objective",
            Optim => "optim",
            Pool => "pool",
            Search => "search",
        }
    }
}

/// An error of the driver in the words of the backend.
pub(crate) fn failed(doing: &'static str) -> impl Fn(DriverError) -> Error {
    move |e| Error::Device { code: e.0 as i32, doing }
}

/// A device, opened, and the kernels that it has loaded.
#[derive(Debug)]
pub(crate) struct Opened {
    context: Arc<CudaContext>,
    /// Ten times the compute capability.
    capability: u32,
    multiprocessors: u32,
    driver: i32,
    compiler: Option<Compiler>,
    modules: Mutex<HashMap<Source, Arc<CudaModule>>>,
    functions: Mutex<HashMap<(Source, &'static str), CudaFunction>>,
}

impl Opened {
    /// Device `ordinal`.
    pub fn new(ordinal: usize) -> Result<Self, OpenError> {
        let driver = driver::check()?;
        let err = |doing| move |e: DriverError| OpenError::Driver { code: e.0 as i32, doing };
        let devices = match CudaContext::device_count() {
            // What a driver says on a machine without a device.
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
            other => other.map_err(err("counting devices"))?,
        };
        let devices = usize::try_from(devices).unwrap_or(0);
        if ordinal >= devices {
            return Err(OpenError::NoDevice { ordinal, devices });
        }
        let context = CudaContext::new(ordinal).map_err(err("opening the device"))?;
        // SAFETY: a backend works on one stream, and waits for its own events where a copy
        // runs beside it.
        unsafe { context.disable_event_tracking() };
        let (major, minor) =
            context.compute_capability().map_err(err("asking its compute capability"))?;
        let capability = (major * 10 + minor).unsigned_abs();
        if capability < OLDEST_DEVICE {
            return Err(OpenError::OldDevice { found: capability, needed: OLDEST_DEVICE });
        }
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(count).map_err(err("counting processors"))?;
        Ok(Self {
            context,
            capability,
            multiprocessors: multiprocessors.unsigned_abs().max(1),
            driver,
            compiler: None,
            modules: Mutex::default(),
            functions: Mutex::default(),
        })
    }

    /// The same device, opened anew, with kernels that are compiled for it and kept in `folder`.
    pub fn compiling(&self, folder: &Path) -> Result<Self, OpenError> {
        let compiler = Compiler::new(folder, self.capability, self.driver)?;
        Ok(Self {
            context: self.context.clone(),
            compiler: Some(compiler),
            modules: Mutex::default(),
            functions: Mutex::default(),
            ..*self
        })
    }

    fn load(&self, source: Source) -> Result<Arc<CudaModule>, Error> {
        let load = |ptx: String| self.context.load_module(Ptx::from_src(ptx));
        let built_in = || load(source.ptx(self.capability).into());
        let loaded = match &self.compiler {
            None => built_in(),
            Some(compiler) => match load(compiler.ptx(source)?) {
                // A compiler newer than the driver: what is built in is old enough.
                Err(e) if compile::is_too_new(e) => built_in(),
                loaded => loaded,
            },
        };
        loaded.map_err(failed("loading kernels"))
    }

    fn function(&self, source: Source, name: &'static str) -> Result<CudaFunction, Error> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&(source, name)) {
            return Ok(function.clone());
        }
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.get(&source) {
            Some(module) => module.clone(),
            None => {
                let module = self.load(source)?;
                modules.insert(source, module.clone());
                module
            }
        };
        let function = module.load_function(name).map_err(failed("finding a kernel"))?;
        functions.insert((source, name), function.clone());
        Ok(function)
    }
}

/// Where one backend's work is queued.
#[derive(Debug)]
pub(crate) struct Gpu {
    opened: Arc<Opened>,
    stream: Arc<CudaStream>,
    /// Copies from the host that run beside the kernels.
    copies: Arc<CudaStream>,
    waits: AtomicU64,
}

impl Gpu {
    /// New queues on a device.
    pub fn new(opened: Arc<Opened>) -> Result<Self, Error> {
        let stream = || opened.context.new_stream().map_err(failed("making a stream"));
        let (stream, copies) = (stream()?, stream()?);
        Ok(Self { opened, stream, copies, waits: AtomicU64::new(0) })
    }

    /// Ten times the compute capability.
    pub fn capability(&self) -> u32 {
        self.opened.capability
    }

    /// Streaming multiprocessors: what a grid is to fill.
    pub fn multiprocessors(&self) -> u32 {
        self.opened.multiprocessors
    }

    /// Bytes of device memory that are free.
    pub fn free(&self) -> Result<usize, Error> {
        Ok(self.opened.context.mem_get_info().map_err(failed("asking for free memory"))?.0)
    }

    /// Launches a kernel. Nothing runs where the grid is empty.
    ///
    /// The caller passes what the kernel declares, argument for argument, and addresses of
    /// memory that is as long as the kernel takes it to be: both files of a room are written
    /// together, and its tests run on a device that checks every access.
    pub fn launch(
        &self,
        source: Source,
        name: &'static str,
        launch: Launch,
        args: &[Arg],
    ) -> Result<(), Error> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let function = self.opened.function(source, name)?;
        if launch.shared > 48 << 10 {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function
                .set_attribute(attribute, launch.shared as i32)
                .map_err(failed("asking for shared memory"))?;
        }
        self.bind()?;
        let [x, y, z] = launch.grid;
        let mut pointers: Vec<_> = args.iter().map(Arg::pointer).collect();
        // SAFETY: the function is of a module that this device holds, the stream is the device's,
        // each pointer is to an argument that outlives the call, which copies it.
        let launched = unsafe {
            result::launch_kernel(
                function.cu_function(),
                (x, y, z),
                (launch.block, 1, 1),
                launch.shared,
                self.stream.cu_stream(),
                &mut pointers,
            )
        };
        launched.map_err(failed(name))
    }

    fn bind(&self) -> Result<(), Error> {
        self.opened.context.bind_to_thread().map_err(failed("taking the device"))
    }

    /// Device memory, not initialised.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Buffer, Error> {
        // SAFETY: bytes of any value are bytes; who reads them has written them.
        let slice = unsafe { self.stream.alloc::<u8>(bytes.max(1)) };
        let slice = slice.map_err(failed("allocating memory"))?;
        let address = Address(slice.device_ptr(&self.stream).0);
        Ok(Buffer { gpu: self.clone(), address, bytes, _slice: slice })
    }

    /// Device memory that holds what the host has.
    pub fn upload<T: bytemuck::NoUninit>(self: &Arc<Self>, from: &[T]) -> Result<Buffer, Error> {
        let bytes: &[u8] = bytemuck::cast_slice(from);
        let buffer = self.allocate(bytes.len())?;
        self.write(buffer.address, bytes)?;
        Ok(buffer)
    }

    /// Copies host memory to the device. Memory that is not pinned is read before this returns.
    pub fn write(&self, to: Address, from: &[u8]) -> Result<(), Error> {
        if from.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let stream = self.stream.cu_stream();
        // SAFETY: callers pass addresses of memory of theirs that is at least as long.
        unsafe { result::memcpy_htod_async(to.0, from, stream) }.map_err(failed("copying to it"))
    }

    /// Copies device memory to the host, after all that was launched before.
    pub fn read(&self, from: Address, into: &mut [u8]) -> Result<(), Error> {
        if into.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let stream = self.stream.cu_stream();
        // SAFETY: as in `write`; the wait below ends before the borrow of `into` does.
        unsafe { result::memcpy_dtoh_async(into, from.0, stream) }
            .map_err(failed("copying from it"))?;
        self.wait()
    }

    /// Waits for all that was launched.
    pub fn wait(&self) -> Result<(), Error> {
        self.stream.synchronize().map_err(failed("waiting for it"))?;
        self.waits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// How often the host has waited: what was queued before the last time is done.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    /// Copies within the device; the two do not overlap.
    pub fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: as in `write`.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream.cu_stream()) }
            .map_err(failed("copying within it"))
    }

    /// Sets bytes.
    pub fn set(&self, to: Address, byte: u8, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: as in `write`.
        unsafe { result::memset_d8_async(to.0, byte, bytes, self.stream.cu_stream()) }
            .map_err(failed("setting memory"))
    }
}

/// Device memory, freed with the value.
#[derive(Debug)]
pub(crate) struct Buffer {
    gpu: Arc<Gpu>,
    address: Address,
    bytes: usize,
    _slice: CudaSlice<u8>,
}

impl Buffer {
    /// Where it lies.
    pub const fn address(&self) -> Address {
        self.address
    }

    /// Copies the first of its bytes to the host, after all that was launched before.
    pub fn read<T: bytemuck::Pod>(&self, into: &mut [T]) -> Result<(), Error> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(into);
        let given = self.bytes;
        let bytes = bytes.get_mut(..given.min(bytes.len())).unwrap_or_default();
        self.gpu.read(self.address, bytes)
    }
}

/// Host memory that the device reads by itself, and the copy that may still be reading it.
#[derive(Debug)]
pub(crate) struct Page {
    host: PinnedHostSlice<u8>,
    copied: CudaEvent,
}

impl Page {
    /// `bytes` of pinned memory, all 0.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self, Error> {
        let context = &gpu.opened.context;
        // SAFETY: the bytes are set below, before anything reads them.
        let host = unsafe { context.alloc_pinned_with_flags::<u8>(bytes.max(1), 0) };
        let mut host = host.map_err(failed("allocating pinned memory"))?;
        host.as_mut_slice().map_err(failed("allocating pinned memory"))?.fill(0);
        let copied = context.new_event(None).map_err(failed("making an event"))?;
        Ok(Self { host, copied })
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.host.len()
    }

    /// The bytes, once the last copy has read them.
    pub fn bytes(&mut self) -> Result<&mut [u8], Error> {
        self.copied.synchronize().map_err(failed("waiting for a copy"))?;
        self.host.as_mut_slice().map_err(failed("waiting for a copy"))
    }

    /// Queues a copy of the first `bytes` to `to`, before all kernels that are launched after it.
    /// `beside` those that were launched before, where none of them uses the place.
    pub fn copy(&self, gpu: &Gpu, to: Address, bytes: usize, beside: bool) -> Result<(), Error> {
        gpu.bind()?;
        let stream = if beside { &gpu.copies } else { &gpu.stream };
        let host = self.host.as_slice().map_err(failed("waiting for a copy"))?;
        let host = host.get(..bytes).unwrap_or_default();
        // SAFETY: the caller passes an address of memory of its own that is as long. The page
        // is not written or freed before `copied`.
        unsafe { result::memcpy_htod_async(to.0, host, stream.cu_stream()) }
            .map_err(failed("copying to it"))?;
        self.copied.record(stream).map_err(failed("copying to it"))?;
        if beside {
            gpu.stream.wait(&self.copied).map_err(failed("copying to it"))?;
        }
        Ok(())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // A device that failed copies no more.
        let _ = self.copied.synchronize();
    }
}
