//! Kernels compiled for the very device, by NVRTC, and kept on disk.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use cudarc::driver::DriverError;
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts, result, sys};
use sepal_core::error::Error;

use crate::driver::OpenError;
use crate::gpu::Source;

/// NVRTC and the folder of what it compiled.
#[derive(Debug)]
pub(crate) struct Compiler {
    folder: PathBuf,
    /// What a kept file depends on beside its source: compiler, driver, architecture.
    identity: String,
    options: Vec<String>,
}

impl Compiler {
    /// For a device of `capability` (ten times it) under a driver of version `driver`.
    pub fn new(folder: &Path, capability: u32, driver: i32) -> Result<Self, OpenError> {
        // SAFETY: loads the compiler's library, which cudarc is about to load too.
        if !unsafe { sys::is_culib_present() } {
            return Err(OpenError::NoCompiler);
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is there; the pointers are to locals.
        let asked = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        asked.result().map_err(|e| code(&e, "asking the compiler's version"))?;
        let identity = format!("nvrtc {major}.{minor}, driver {driver}, {capability}");
        let options =
            vec![format!("--gpu-architecture=compute_{capability}"), "--std=c++17".into()];
        Ok(Self { folder: folder.into(), identity, options })
    }

    /// The PTX of a file of kernels: kept from before, or compiled and kept. Where it cannot be
    /// kept it is compiled each time.
    pub fn ptx(&self, source: Source) -> Result<String, Error> {
        let code = source.code();
        let key = hash(&[&self.identity, &self.options.join(" "), &code]);
        let path = self.folder.join(format!("{}-{key:016x}.ptx", source.name()));
        if let Some(ptx) = fs::read_to_string(&path).ok().and_then(|kept| unsealed(&kept)) {
            return Ok(ptx);
        }
        let options = CompileOptions { options: self.options.clone(), ..Default::default() };
        let failed = Error::Device { code: 0, doing: "compiling kernels" };
        let ptx = compile_ptx_with_opts(&code, options).map_err(|_| failed)?.to_src();
        // An image ends as a C string does.
        let ptx = ptx.trim_end_matches('\0').to_owned();
        let _ = self.keep(&path, &ptx);
        Ok(ptx)
    }

    /// Written beside and renamed: a reader finds all of it or nothing.
    fn keep(&self, path: &Path, ptx: &str) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let beside = path.with_extension(format!("{}.part", std::process::id()));
        let mut file = fs::File::create(&beside)?;
        let written = file.write_all(sealed(ptx).as_bytes()).and_then(|()| file.sync_all());
        let kept = written.and_then(|()| fs::rename(&beside, path));
        if kept.is_err() {
            fs::remove_file(&beside)?;
        }
        kept
    }
}

/// Whether a driver is older than the PTX that it was given.
pub(crate) fn is_too_new(e: DriverError) -> bool {
    e.0 == cudarc::driver::sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
}

fn code(e: &result::NvrtcError, doing: &'static str) -> OpenError {
    OpenError::Driver { code: e.0 as i32, doing }
}

/// FNV-1a of 64 bits, over texts and the ends between them.
fn hash(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// PTX with a last line that tells whether all of it is there.
fn sealed(ptx: &str) -> String {
    format!("{ptx}\n// {:016x}\n", hash(&[ptx]))
}

fn unsealed(kept: &str) -> Option<String> {
    let (ptx, seal) = kept.trim_end().rsplit_once("\n// ")?;
    (u64::from_str_radix(seal, 16) == Ok(hash(&[ptx]))).then(|| ptx.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_cut_short_or_changed_is_not_taken() {
        let kept = sealed(".version 8.2\n.target sm_80\n");
        assert_eq!(unsealed(&kept).as_deref(), Some(".version 8.2\n.target sm_80\n"));
        for end in 0..kept.len() - 1 {
            assert_eq!(unsealed(&kept[..end]), None, "{end} bytes");
        }
        assert_eq!(unsealed(&kept.replace("sm_80", "sm_90")), None);
    }

    #[test]
    fn texts_are_told_apart_by_where_they_end() {
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
    }
}
