//! Central differences and comparisons for the tests of layers and losses.

use std::vec::Vec;

/// `len` repeatable values in (-1, 1), another sequence for each `seed`.
pub(crate) fn values(seed: u64, len: u32) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 11) as f64 / (1u64 << 53) as f64) * 2.0 - 1.0
        })
        .collect()
}

/// The sum of products.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Each pair differs by at most `tolerance` times the larger of 1 and its size.
#[track_caller]
pub(crate) fn close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "lengths differ");
    for (at, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * e.abs().max(1.0), "at {at}: got {g}, expected {e}");
    }
}

/// Checks `backward` against central differences of `<forward(inputs), r>` for a fixed random r,
/// for every element of every input. Gradients start at zero; `backward` gets r as dy.
#[track_caller]
pub(crate) fn gradient<const N: usize>(
    inputs: &[Vec<f64>; N],
    out: usize,
    forward: impl Fn([&[f64]; N], &mut [f64]),
    backward: impl FnOnce([&[f64]; N], &[f64], [&mut [f64]; N]),
) {
    const STEP: f64 = 1e-5;
    let r = values(99, out as u32);
    let mut grads = inputs.clone();
    grads.iter_mut().for_each(|g| g.fill(0.0));
    backward(inputs.each_ref().map(|v| &v[..]), &r, grads.each_mut().map(|v| &mut v[..]));
    let mut y = std::vec![0.0; out];
    for which in 0..N {
        let mut moved = inputs.clone();
        let mut expected = Vec::new();
        for at in 0..inputs[which].len() {
            let mut value = |delta: f64| {
                moved[which][at] = inputs[which][at] + delta;
                y.fill(f64::NAN);
                forward(moved.each_ref().map(|v| &v[..]), &mut y);
                moved[which][at] = inputs[which][at];
                dot(&y, &r)
            };
            expected.push((value(STEP) - value(-STEP)) / (2.0 * STEP));
        }
        close(&grads[which], &expected, 1e-7);
    }
}
