//! What one process' driver knows.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::copies::Copies;
use super::status::*;
use crate::code::{Kernel, Module};
use crate::counts::Counts;
use crate::device::Device;
use crate::fault::Fault;
use crate::machine::{self, Launch};
use crate::memory::Memory;

/// A kernel of a loaded module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    module: usize,
    kernel: usize,
    /// The dynamic shared memory that it may take, where it was raised.
    dynamic: Option<u32>,
}

/// The shape of a launch, as the driver takes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
}

#[derive(Default)]
pub(super) struct State {
    pub device: Device,
    pub memory: Memory,
    pub modules: HashMap<usize, Module>,
    pub functions: HashMap<usize, Function>,
    handles: usize,
    launches: u64,
    /// An error from which the device does not recover.
    lost: Option<Status>,
    /// What went wrong last.
    pub message: String,
    pub counts: Counts,
    pub copies: Copies,
}

thread_local! {
    pub(super) static CONTEXT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

pub(super) fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    STATE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub fn handle(&mut self) -> usize {
        self.handles += 1;
        self.handles * 16
    }

    /// Forgets what went wrong, and starts to count anew.
    pub fn recover(&mut self) {
        self.lost = None;
        self.launches = 0;
        self.message.clear();
        self.counts = Counts::default();
    }

    fn say(&mut self, what: &dyn Display) {
        self.message = what.to_string();
        eprintln!("stand-in: {}", self.message);
    }

    /// A kernel failed, or data that nobody wrote was asked for: the device is lost.
    pub fn fail(&mut self, fault: &Fault) -> Status {
        self.say(fault);
        let status = match fault.kind() {
            Fault::OutOfBounds { .. } => ILLEGAL_ADDRESS,
            Fault::Misaligned { .. } => MISALIGNED_ADDRESS,
            Fault::Endless => LAUNCH_TIMEOUT,
            _ => LAUNCH_FAILED,
        };
        self.lost = Some(status);
        status
    }

    /// A call is refused; the device goes on.
    pub fn refuse(&mut self, status: Status, what: &dyn Display) -> Status {
        self.say(what);
        status
    }

    /// A device that failed answers everything with its failure.
    pub fn alive(&self) -> Result<(), Status> {
        self.lost.map_or(Ok(()), Err)
    }

    /// What a copy of the host gave.
    pub fn copied(&mut self, done: Result<(), Fault>) -> Status {
        match done {
            Ok(()) => SUCCESS,
            Err(fault @ Fault::OutOfBounds { .. }) => self.refuse(INVALID_VALUE, &fault),
            Err(fault) => self.fail(&fault),
        }
    }

    pub fn load(&mut self, source: &str) -> Result<usize, Status> {
        self.alive()?;
        let mut module = Module::parse(source).map_err(|e| self.refuse(INVALID_PTX, &e))?;
        if module.version > self.device.ptx {
            let ((a, b), (c, d)) = (module.version, self.device.ptx);
            let what = format!("PTX of version {a}.{b}, the driver reads {c}.{d} at most");
            return Err(self.refuse(UNSUPPORTED_PTX_VERSION, &what));
        }
        if module.target > self.device.capability {
            let (wanted, there) = (module.target, self.device.capability);
            let what = format!("PTX for sm_{wanted}, the device is sm_{there}");
            return Err(self.refuse(NO_BINARY_FOR_GPU, &what));
        }
        module.place(&mut self.memory);
        let handle = self.handle();
        self.modules.insert(handle, module);
        Ok(handle)
    }

    pub fn unload(&mut self, module: usize) -> Status {
        let Some(unloaded) = self.modules.remove(&module) else { return INVALID_HANDLE };
        unloaded.remove(&mut self.memory);
        self.functions.retain(|_, function| function.module != module);
        SUCCESS
    }

    pub fn function(&mut self, module: usize, name: &str) -> Result<usize, Status> {
        let found = self.modules.get(&module).ok_or(INVALID_HANDLE)?;
        let kernel = found.kernels.iter().position(|k| k.name == name).ok_or(NOT_FOUND)?;
        let handle = self.handle();
        self.functions.insert(handle, Function { module, kernel, dynamic: None });
        Ok(handle)
    }

    pub fn kernel(&self, function: usize) -> Result<&Kernel, Status> {
        let function = self.functions.get(&function).ok_or(INVALID_HANDLE)?;
        let kernel = self.modules.get(&function.module).map(|m| &m.kernels[function.kernel]);
        kernel.ok_or(INVALID_HANDLE)
    }

    /// Raises the dynamic shared memory that a kernel may take.
    pub fn allow(&mut self, function: usize, bytes: u32) -> Status {
        let most = self.device.most_shared();
        let room = self.kernel(function).map(|kernel| most.saturating_sub(kernel.shared));
        match (room, self.functions.get_mut(&function)) {
            (Ok(room), Some(function)) if bytes <= room => function.dynamic = Some(bytes),
            (Ok(_), _) => return INVALID_VALUE,
            (Err(status), _) => return status,
        }
        SUCCESS
    }

    /// The dynamic shared memory that a kernel may take.
    pub fn allowed(&self, function: usize) -> u32 {
        let fixed = self.kernel(function).map_or(0, |kernel| kernel.shared);
        let raised = self.functions.get(&function).and_then(|function| function.dynamic);
        raised.unwrap_or_else(|| crate::device::SHARED.saturating_sub(fixed))
    }

    pub fn launch(
        &mut self,
        function: usize,
        shape: Shape,
        stream: usize,
        params: impl FnOnce(&Kernel) -> Vec<u8>,
    ) -> Result<(), Status> {
        self.alive()?;
        match self.settle(stream) {
            SUCCESS => {}
            failed => return Err(failed),
        }
        let kernel = self.kernel(function)?;
        let name = kernel.name.clone();
        let Shape { grid, block, shared } = shape;
        if shared > self.allowed(function) {
            let allowed = self.allowed(function);
            let what = format!("{name}: {shared} bytes of shared memory, {allowed} are allowed");
            return Err(self.refuse(INVALID_VALUE, &what));
        }
        if grid[1] > 65_535 || grid[2] > 65_535 || block[2] > 64 {
            let what = format!("{name}: a grid of {grid:?} blocks of {block:?} threads");
            return Err(self.refuse(INVALID_VALUE, &what));
        }
        self.launches += 1;
        if self.device.lost_at == Some(self.launches) {
            self.lost = Some(LAUNCH_FAILED);
            return Err(LAUNCH_FAILED);
        }
        let seed = self.device.seed.wrapping_add(self.launches);
        let Self { modules, functions, memory, .. } = self;
        let found = functions.get(&function).ok_or(INVALID_HANDLE)?;
        let kernel = &modules.get(&found.module).ok_or(INVALID_HANDLE)?.kernels[found.kernel];
        let params = params(kernel);
        let launch = Launch { grid, block, shared, params: &params, seed };
        match machine::run(kernel, launch, memory) {
            Ok(counts) => {
                self.counts.join(&counts);
                self.counts.launch(1);
                Ok(())
            }
            Err(fault @ Fault::Launch(_)) => Err(self.refuse(INVALID_VALUE, &fault)),
            Err(fault) => Err(self.fail(&fault)),
        }
    }
}
