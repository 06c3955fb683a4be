//! What every backend must do.
//!
//! One suite, generic over the backend. A backend adds one line and gets one test for each case:
//!
//! ```
//! sepal_conformance::suite!(reference, |words| sepal_core::reference::Reference::new(words));
//! ```
//!
//! Expected numbers come from the functions of the layers, losses and searches themselves, run in
//! `f64` on the same `f32` data, or by definition. Indices, counts and winners are exact; values
//! agree within a [`Tolerance`] that each case names. Arenas have exactly the size of their plan
//! and are filled with NaN, so that reading the unwritten, or writing past the end, fails.

pub mod blocks;
mod delegate;
pub mod layers;
pub mod memory;
pub mod models;
pub mod objectives;
pub mod oracle;
pub mod search;
pub mod tolerance;
pub mod training;

pub use delegate::seam;
pub use sepal_core::arena::Word;
pub use sepal_core::backend::Backend;
pub use tolerance::Tolerance;

use sepal_core::arena::{Dtype, Layout, Slot};
use sepal_core::backend::{Host, HostMut};
use sepal_core::shape::Shape;

/// Makes a backend of `words` of memory and lends it to the closure. A backend with memory of
/// its own makes as much.
pub type With = fn(&mut [Word], &mut dyn FnMut(&mut dyn Backend));

/// Runs `work` on a new backend with `bytes` of memory, all NaN.
pub fn run<T>(with: With, bytes: usize, work: impl FnOnce(&mut dyn Backend) -> T) -> T {
    let mut words = vec![Word::NAN; Word::count(bytes)];
    let (mut work, mut result) = (Some(work), None);
    with(&mut words, &mut |backend| {
        let work = work.take().expect("the backend is lent once");
        result = Some(work(backend));
    });
    result.expect("the backend is lent")
}

/// Asks a backend without memory, such as for its plans.
pub fn ask<T>(with: With, question: impl FnOnce(&dyn Backend) -> T) -> T {
    run(with, 0, |backend| question(backend))
}

/// `len` repeatable numbers in (-1, 1), another sequence for each `seed`.
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 24) as f32) * 2.0 - 1.0
        })
        .collect()
}

/// The same numbers in `f64`.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// Copies numbers into a slot.
#[track_caller]
pub fn write(backend: &mut dyn Backend, slot: Slot, x: &[f32]) {
    backend.write(slot, Host::F32(x)).expect("the slot holds numbers");
}

/// Copies a slot's numbers out, in the reference's layout.
#[track_caller]
pub fn read(backend: &mut dyn Backend, slot: Slot) -> Vec<f32> {
    let mut x = vec![f32::NAN; len(slot.shape)];
    backend.read(slot, HostMut::F32(&mut x)).expect("the slot holds numbers");
    x
}

/// Elements of a tensor.
pub fn len(shape: Shape) -> usize {
    shape.len().expect("shapes of the suite are small") as usize
}

/// Cuts an arena into slots, one after the other.
#[derive(Debug, Default)]
pub struct Cut {
    /// Bytes so far.
    pub bytes: usize,
}

impl Cut {
    /// The next slot.
    pub fn slot(&mut self, shape: Shape, dtype: Dtype) -> Slot {
        let slot = Slot { at: self.bytes, shape, dtype, layout: Layout::Nchw };
        self.bytes += Word::round_up(slot.bytes());
        slot
    }
}

/// One test for each case of the suite, for one backend.
///
/// `$new` makes the backend of `$words: &mut [Word]`.
#[macro_export]
macro_rules! suite {
    ($name:ident, |$words:ident| $new:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "the expression may need nothing from outside")]
            use super::*;

            fn with(words: &mut [$crate::Word], work: &mut dyn FnMut(&mut dyn $crate::Backend)) {
                let $words = words;
                let mut backend = $new;
                work(&mut backend);
            }

            $crate::layer_tests! {
                conv2d, batch_norm, relu, relu6, leaky_relu, tanh, max_pool, avg_pool,
                global_avg_pool, avg_pool_to, dense, dropout, flatten, standardise, l2_normalise,
                channel_std, project, embedding, k_max_pool, space_to_depth, quantise
            }
            $crate::tests! { blocks {
                convolution_norm_pool, convolution_tanh_pool, dense_dropout, relu_over_tanh,
                unit_length_over_relu, relu_over_dropout, first_layer_in_place, views_in_a_row,
                norms_in_a_row, deviation_and_projection, text, planes_to_channels,
                pools_in_a_row, everything_in_place, two_dropouts_differ, gradients_accumulate,
                residual_units, residual_bottlenecks, residual_before_norms, residual_nests,
                residual_rows, residual_chains
            } }
            $crate::tests! { objectives {
                random, images, single_sample, one_class, class_of_one, duplicates, ties,
                labels_out_of_range, not_finite, statistics
            } }
            $crate::tests! { search {
                random, single, lattice, duplicates, large_mean, nan, rectangular, in_pieces,
                half_precision, without_dimensions, more_places_than_rows, other_dimensions
            } }
            $crate::tests! { memory {
                round_trips, fill, zero, copy, widen_bytes, widen_numbers, update, wrong_type,
                wrong_length, past_the_end, overlap
            } }
            $crate::tests! { models {
                flat, file_in_place, file_misaligned, file_f16, file_i8, part_of_a_net,
                fewer_samples, weights_missing, too_small
            } }
            $crate::tests! { training {
                pinned_losses, same_bits_twice, resumes_bit_for_bit, one_sample_at_a_time,
                a_failed_step_can_be_repeated, too_small, not_a_number, one_class
            } }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! layer_tests {
    ($($layer:ident),*) => {
        mod layers {
            $(mod $layer {
                $crate::layer_tests! { @ $layer: eval, train, calibrate, backward, finite }
            })*
        }
    };
    (@ $layer:ident: $($pass:ident),*) => {
        $(#[test]
        fn $pass() {
            $crate::layers::$layer::$pass(super::super::with);
        })*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! tests {
    ($module:ident { $($case:ident),* }) => {
        mod $module {
            $(#[test]
            fn $case() {
                $crate::$module::$case(super::with);
            })*
        }
    };
}

#[cfg(doctest)]
#[doc = include_str!("../../../docs/tasks/write-a-backend.md")]
struct WriteABackend;
