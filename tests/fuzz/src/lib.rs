//! Fuzz targets: each reader of [`readers::TARGETS`] as a program of libFuzzer.

pub use libfuzzer_sys;

pub mod readers;

/// A program that gives a reader of the table what libFuzzer makes up, mutated as the table says.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        const TARGET: &$crate::readers::Target = $crate::readers::named($name);

        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.check)(bytes));

        $crate::libfuzzer_sys::fuzz_mutator!(|data: &mut [u8],
                                              size: usize,
                                              max_size: usize,
                                              seed: u32| {
            let mut bytes = data[..size].to_vec();
            let mut inner = |piece: &mut Vec<u8>| {
                let size = piece.len();
                // Room to grow, as much as the whole has.
                let most = size + max_size.saturating_sub(size).max(1);
                piece.resize(most, 0);
                let size = $crate::libfuzzer_sys::fuzzer_mutate(piece, size, most);
                piece.truncate(size);
            };
            (TARGET.mutate)(&mut bytes, seed, &mut inner);
            bytes.truncate(max_size);
            data[..bytes.len()].copy_from_slice(&bytes);
            bytes.len()
        });
    };
}
