//! The search as libraries without a kernel of its own for it do: a product of matrices by cuBLAS, in
//! f32, then the least of each row of it.

use std::sync::Arc;

use cudarc::cublas::{CudaBlas, Gemm, GemmConfig, sys};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use sepal::cuda::OnCuda;
use sepal::neighbour::{Nearest, Pair, Rows};

use crate::Failure;

const KERNELS: &str = include_str!("../../cuda/kernels/ptx/unfused.75.ptx");

/// cuBLAS on device 0.
#[derive(Clone)]
pub struct Cublas {
    stream: Arc<CudaStream>,
    blas: Arc<CudaBlas>,
    squares: CudaFunction,
    least_of_row: CudaFunction,
}

fn threads(blocks: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 }
}

impl Cublas {
    /// Or what is missing.
    pub fn open() -> Result<Self, Failure> {
        // It says what of the driver is missing, where cudarc panics.
        OnCuda::open(0)?;
        // SAFETY: loads the library, which cudarc is about to load too.
        if !unsafe { sys::is_culib_present() } {
            return Err("no cuBLAS: the loader finds no libcublas.so.12".into());
        }
        let context = CudaContext::new(0)?;
        let stream = context.new_stream()?;
        let blas = Arc::new(CudaBlas::new(stream.clone())?);
        let module = context.load_module(Ptx::from_src(KERNELS))?;
        let [squares, least_of_row] = ["squares", "least_of_row"].map(|k| module.load_function(k));
        Ok(Self { stream, blas, squares: squares?, least_of_row: least_of_row? })
    }

    /// Searches a set in itself; holds all of its products.
    pub fn search(&self, set: Rows<'_>, pairs: &mut [Pair]) -> Result<(), Failure> {
        let (count, features) = (set.labels.len(), set.dim);
        let (n, dim) = (u32::try_from(count)?, u32::try_from(features)?);
        let stream = &self.stream;
        let (rows, labels) = (stream.clone_htod(set.data)?, stream.clone_htod(set.labels)?);
        let mut lengths = stream.alloc_zeros::<f32>(count)?;
        // SAFETY: the product writes all of them.
        let mut products = unsafe { stream.alloc::<f32>(count * count) }?;
        let mut keys = stream.alloc_zeros::<u64>(2 * count)?;
        let mut launch = stream.launch_builder(&self.squares);
        launch.arg(&rows).arg(&mut lengths).arg(&n).arg(&dim);
        // SAFETY: the arguments are the kernel's, a warp for each row.
        unsafe { launch.launch(threads(n.div_ceil(8))) }?;
        let (side, depth) = (i32::try_from(count)?, i32::try_from(features)?);
        let config = GemmConfig {
            transa: sys::cublasOperation_t::CUBLAS_OP_T,
            transb: sys::cublasOperation_t::CUBLAS_OP_N,
            m: side,
            n: side,
            k: depth,
            alpha: 1.0,
            lda: depth,
            ldb: depth,
            beta: 0.0,
            ldc: side,
        };
        // SAFETY: `side` rows of `depth` numbers, times themselves, are `side` squared products.
        unsafe { self.blas.gemm(config, &rows, &rows, &mut products) }?;
        let mut launch = stream.launch_builder(&self.least_of_row);
        launch.arg(&products).arg(&lengths).arg(&labels).arg(&mut keys).arg(&n);
        // SAFETY: the arguments are the kernel's, a block of 256 for each row.
        unsafe { launch.launch(threads(n)) }?;
        let keys = stream.clone_dtoh(&keys)?;
        let nearest =
            |key: u64| Nearest { index: key as u32, dist2: f32::from_bits((key >> 32) as u32) };
        for (pair, [same, other]) in pairs.iter_mut().zip(keys.as_chunks::<2>().0) {
            *pair = Pair { same: nearest(*same), other: nearest(*other) };
        }
        Ok(())
    }
}
