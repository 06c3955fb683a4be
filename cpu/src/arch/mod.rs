//! Instruction sets: the one place where a kernel meets the machine.
//!
//! A kernel is written once, over [`Simd`]: vectors of 32-bit floats and the few operations that
//! kernels are made of. Each instruction set implements it in a file of its own; a value of such a
//! type is the proof that the machine has the instructions, so that using them is safe. A
//! [`Kernel`] is run by [`Instructions::run`], which compiles it once for each set and picks at run
//! time.
//!
//! | set | vectors | registers |
//! |---|---|---|
//! | portable | 8 floats, as the compiler likes | - |
//! | AVX2 with FMA and F16C | 8 floats | 16 |
//! | AVX-512 (F, BW, DQ, VL) | 16 floats, and 8 | 32 |
//! | NEON | 8 floats in a pair of registers | 16 pairs |
//!
//! A kernel that runs on several threads splits its work first and is run inside each task: a
//! closure that another thread calls is not compiled for the set of the function around it.
//!
//! Unsafe code is allowed in this directory alone (and where a product is handed to
//! `matrixmultiply`). Kernels that need raw pointers for speed lie here too, behind safe functions
//! that check what the pointers may reach.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub(crate) mod direct;
pub(crate) mod distance;
mod portable;
pub(crate) mod products;
pub(crate) mod winograd;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use portable::Portable;

/// Vectors of 32-bit floats in one instruction set.
///
/// Lane `i` of a vector is number `i` of the memory that it came from.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Floats of one vector: 8 or 16.
    const LANES: usize;
    /// Vectors that registers hold at once.
    const REGISTERS: usize;
    /// A vector.
    type V: Copy;
    /// The outcome of a comparison, lane by lane.
    type Mask: Copy;

    /// The same number in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// `LANES` numbers from an address of any alignment.
    ///
    /// # Safety
    /// `from` is valid for reads of [`LANES`](Self::LANES) numbers.
    unsafe fn load_ptr(self, from: *const f32) -> Self::V;
    /// Writes `LANES` numbers to an address of any alignment.
    ///
    /// # Safety
    /// `to` is valid for writes of [`LANES`](Self::LANES) numbers.
    unsafe fn store_ptr(self, v: Self::V, to: *mut f32);
    /// `LANES` numbers in half precision, given as their bits, widened.
    ///
    /// # Safety
    /// `from` is valid for reads of [`LANES`](Self::LANES) numbers.
    unsafe fn load_half_ptr(self, from: *const u16) -> Self::V;
    /// `LANES` bytes as numbers.
    ///
    /// # Safety
    /// `from` is valid for reads of [`LANES`](Self::LANES) bytes.
    unsafe fn load_bytes_ptr(self, from: *const u8) -> Self::V;
    /// Writes `LANES` whole numbers from 0 to 255 as bytes.
    ///
    /// # Safety
    /// `to` is valid for writes of [`LANES`](Self::LANES) bytes.
    unsafe fn store_bytes_ptr(self, v: Self::V, to: *mut u8);

    /// a + b
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a - b
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a b
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a b + c, rounded once where the set has such an instruction.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// c - a b, rounded as [`fma`](Self::fma).
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The greater, lane by lane; b where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The lesser, lane by lane; b where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The square root, rounded rightly.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// a < b; false where either is NaN.
    fn less(self, a: Self::V, b: Self::V) -> Self::Mask;
    /// a == b; false where either is NaN.
    fn equal(self, a: Self::V, b: Self::V) -> Self::Mask;
    /// `yes` where the mask holds, else `no`.
    fn select(self, mask: Self::Mask, yes: Self::V, no: Self::V) -> Self::V;
    /// The mask with lane i in bit i.
    fn bits(self, mask: Self::Mask) -> u32;
    /// Asks for the cache line of an address, which need not be valid.
    fn prefetch(self, at: *const f32);

    /// The same address, which the compiler knows only once it has `v`. Loops that need every
    /// register order their loads by it, so that no value has to leave its register for another
    /// that was loaded early.
    #[inline(always)]
    fn after(self, at: *const f32, _v: Self::V) -> *const f32 {
        at
    }

    /// A vector of blocks of 8 numbers, each `step` numbers after the one before.
    ///
    /// # Safety
    /// Every block is valid for reads.
    #[inline(always)]
    unsafe fn load_blocks_ptr(self, from: *const f32, _step: usize) -> Self::V {
        // SAFETY: a vector of 8 is one block.
        unsafe { self.load_ptr(from) }
    }
    /// Writes blocks of 8 numbers, each `step` numbers after the one before.
    ///
    /// # Safety
    /// Every block is valid for writes.
    #[inline(always)]
    unsafe fn store_blocks_ptr(self, v: Self::V, to: *mut f32, _step: usize) {
        // SAFETY: a vector of 8 is one block.
        unsafe { self.store_ptr(v, to) }
    }
    /// Writes blocks of 8 numbers, each `step` numbers after the one before: of `a`, and after each
    /// of them that of `b`.
    ///
    /// # Safety
    /// Every pair of blocks is valid for writes.
    #[inline(always)]
    unsafe fn store_pairs_ptr(self, a: Self::V, b: Self::V, to: *mut f32, step: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            self.store_blocks_ptr(a, to, step);
            self.store_blocks_ptr(b, to.add(8), step);
        }
    }

    /// All zero.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// The first `LANES` numbers of a slice.
    ///
    /// # Panics
    /// Where it is shorter.
    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::V {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice has as many numbers.
        unsafe { self.load_ptr(from.as_ptr()) }
    }

    /// Writes the first `LANES` numbers of a slice.
    ///
    /// # Panics
    /// Where it is shorter.
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32]) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: the slice has as many numbers.
        unsafe {
            self.store_ptr(v, to.as_mut_ptr());
        }
    }

    /// The first `LANES` bytes of a slice, as numbers.
    ///
    /// # Panics
    /// Where it is shorter.
    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> Self::V {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice has as many bytes.
        unsafe { self.load_bytes_ptr(from.as_ptr()) }
    }

    /// Writes whole numbers from 0 to 255 to the first `LANES` bytes of a slice.
    ///
    /// # Panics
    /// Where it is shorter.
    #[inline(always)]
    fn store_bytes(self, v: Self::V, to: &mut [u8]) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: the slice has as many bytes.
        unsafe {
            self.store_bytes_ptr(v, to.as_mut_ptr());
        }
    }
}

/// Vectors of 8 floats.
pub(crate) trait Narrow: Simd {
    /// Eight rows of 8 numbers as their eight columns.
    fn transpose(self, rows: [Self::V; 8]) -> [Self::V; 8];
}

/// An instruction set: its vectors of 8, and its widest.
pub(crate) trait Isa: Copy + Send + Sync + 'static {
    /// Vectors of 8 floats: one block of channels.
    type Narrow: Narrow;
    /// The widest vectors, of 8 floats or 16.
    type Wide: Simd;

    /// Vectors of 8.
    fn narrow(self) -> Self::Narrow;
    /// The widest.
    fn wide(self) -> Self::Wide;
}

/// A set whose widest vectors are those of 8.
impl<S: Narrow> Isa for S {
    type Narrow = Self;
    type Wide = Self;

    #[inline(always)]
    fn narrow(self) -> Self {
        self
    }

    #[inline(always)]
    fn wide(self) -> Self {
        self
    }
}

/// What runs on one thread with one instruction set.
pub(crate) trait Kernel {
    /// What it gives.
    type Out;

    /// Does the work. Implementations are `#[inline(always)]`, and so is what they call in their
    /// loops, or it is not compiled for the set.
    fn run<I: Isa>(self, isa: I) -> Self::Out;
}

/// The instructions that kernels are run with.
///
/// [`best`](Self::best) is what [`Cpu`](crate::Cpu) uses. Another set of the same machine gives
/// results that differ in rounding; [`PORTABLE`](Self::PORTABLE) is on every machine.
///
/// ```
/// use sepal_cpu::Instructions;
/// assert!(Instructions::all().any(|set| set == Instructions::best()));
/// assert_eq!(Instructions::all().next(), Some(Instructions::PORTABLE));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instructions(Set);

/// Values other than `Portable` are made by [`Instructions::all`] alone, which asks the machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(aarch64::Neon),
}

impl Instructions {
    /// No instructions but those that the program was compiled for.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// All sets of this machine that kernels are written for, the best last.
    pub fn all() -> impl Iterator<Item = Self> {
        [
            Some(Set::Portable),
            #[cfg(target_arch = "x86_64")]
            x86::Avx2::new().map(Set::Avx2),
            #[cfg(target_arch = "x86_64")]
            x86::Avx512::new().map(Set::Avx512),
            #[cfg(target_arch = "aarch64")]
            aarch64::Neon::new().map(Set::Neon),
        ]
        .into_iter()
        .flatten()
        .map(Self)
    }

    /// The fastest set of this machine.
    pub fn best() -> Self {
        Self::all().last().unwrap_or(Self::PORTABLE)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Set::Neon(_) => "neon",
        }
    }

    /// Runs a kernel, compiled for this set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self.0 {
            Set::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(set) => set.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(set) => set.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Set::Neon(set) => set.run(kernel),
        }
    }
}

impl core::fmt::Debug for Instructions {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation against plain numbers.
    struct Check;

    impl Kernel for Check {
        type Out = ();

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            assert_eq!(I::Narrow::LANES, 8);
            check(isa.narrow());
            check(isa.wide());
            check_transpose(isa.narrow());
        }
    }

    const NAN: f32 = f32::NAN;
    const A: [f32; 16] =
        [1.0, -2.0, 0.5, 3.0, NAN, 4.0, -0.0, 1e30, 9.0, 16.0, 0.25, 1e-30, 2.0, NAN, 7.0, -8.0];
    const B: [f32; 16] =
        [2.0, -2.0, 4.0, -1.0, 1.0, NAN, 0.0, 1e30, -9.0, 0.5, 8.0, 1e-20, 2.0, NAN, 6.0, -7.0];

    #[inline(always)]
    fn check<S: Simd>(s: S) {
        let n = S::LANES;
        assert!(n == 8 || n == 16);
        let (a, b) = (s.load(&A), s.load(&B));
        let got = |v: S::V| {
            let mut lanes = [7.0; 17];
            s.store(v, &mut lanes);
            assert!(lanes[n..].iter().all(|x| *x == 7.0), "past the lanes");
            lanes
        };
        let each = |v: S::V, f: &dyn Fn(f32, f32) -> f32| {
            for (i, got) in got(v)[..n].iter().enumerate() {
                let expected = f(A[i], B[i]);
                let same = got.to_bits() == expected.to_bits();
                assert!(same || got.is_nan() && expected.is_nan(), "{i}: {got} {expected}");
            }
        };
        each(s.splat(3.5), &|_, _| 3.5);
        each(s.zero(), &|_, _| 0.0);
        each(s.add(a, b), &|a, b| a + b);
        each(s.sub(a, b), &|a, b| a - b);
        each(s.mul(a, b), &|a, b| a * b);
        each(s.div(a, b), &|a, b| a / b);
        each(s.fma(a, b, s.splat(1.0)), &|a, b| a * b + 1.0);
        each(s.fnma(a, b, s.splat(1.0)), &|a, b| 1.0 - a * b);
        each(s.max(a, b), &|a, b| if a > b { a } else { b });
        each(s.min(a, b), &|a, b| if a < b { a } else { b });
        each(s.sqrt(b), &|_, b| b.sqrt());
        let less = s.less(a, b);
        each(s.select(less, a, b), &|a, b| if a < b { a } else { b });
        let bits = |f: &dyn Fn(f32, f32) -> bool| {
            (0..n).map(|i| u32::from(f(A[i], B[i])) << i).sum::<u32>()
        };
        assert_eq!(s.bits(less), bits(&|a, b| a < b));
        assert_eq!(s.bits(s.equal(a, b)), bits(&|a, b| a == b));
        let half: Vec<u16> =
            A.iter().map(|x| half::f16::from_f32(*x).to_bits()).chain([1, 0x7c00]).collect();
        for at in 0..2 {
            // SAFETY: two more than 16 numbers, of which at most 16 are read from `at` on.
            let wide = got(unsafe { s.load_half_ptr(half[at..].as_ptr()) });
            for (got, bits) in wide[..n].iter().zip(&half[at..]) {
                let expected = half::f16::from_bits(*bits).to_f32();
                assert!(*got == expected || got.is_nan() && expected.is_nan());
            }
        }
        s.prefetch(core::ptr::null());
        let numbers: Vec<f32> = (0..32).map(|i| i as f32).collect();
        let mut stored = [-1.0; 32];
        // SAFETY: at most two blocks, of which the second begins at number 20.
        let loaded = unsafe {
            let v = s.load_blocks_ptr(numbers.as_ptr(), 20);
            s.store_blocks_ptr(v, stored.as_mut_ptr(), 20);
            got(v)
        };
        for (i, loaded) in loaded[..n].iter().enumerate() {
            let at = i + i / 8 * 12;
            assert_eq!((*loaded, stored[at]), (numbers[at], numbers[at]));
        }
        assert_eq!(stored.iter().filter(|x| **x == -1.0).count(), 32 - n);
        let mut pairs = [-5.0; 40];
        // SAFETY: at most two pairs of blocks, of which the second begins at number 20.
        unsafe { s.store_pairs_ptr(a, b, pairs.as_mut_ptr(), 20) };
        for i in 0..n {
            let at = i + i / 8 * 12;
            let bits = [pairs[at], pairs[at + 8]].map(f32::to_bits);
            assert_eq!(bits, [A[i], B[i]].map(f32::to_bits));
        }
        assert_eq!(pairs.iter().filter(|x| **x == -5.0).count(), 40 - 2 * n);
        let bytes: Vec<u8> = (0..=255).rev().collect();
        for from in bytes.windows(n) {
            let numbers = s.load_bytes(from);
            assert!(got(numbers).iter().zip(from).all(|(got, byte)| *got == f32::from(*byte)));
            let mut to = [7; 17];
            s.store_bytes(numbers, &mut to);
            assert_eq!((&to[..n], &to[n..]), (from, &[7; 17][n..]));
        }
    }

    #[inline(always)]
    fn check_transpose<S: Narrow>(s: S) {
        let rows: [[f32; 8]; 8] =
            core::array::from_fn(|i| core::array::from_fn(|j| (10 * i + j) as f32));
        for (j, column) in s.transpose(rows.map(|row| s.load(&row))).into_iter().enumerate() {
            let mut got = [0.0; 8];
            s.store(column, &mut got);
            assert_eq!(got, rows.map(|row| row[j]));
        }
    }

    #[test]
    fn every_set_computes_as_plain_numbers_do() {
        for set in Instructions::all() {
            println!("{set:?}");
            set.run(Check);
        }
    }

    #[test]
    #[should_panic(expected = "len")]
    fn short_slices_are_refused() {
        let _ = Portable.load(&[0.0; 7]);
    }
}
