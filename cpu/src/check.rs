//! Repeatable values and comparisons for the unit tests.

/// `len` values in (-1, 1), another sequence for each `seed`.
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Each pair differs by at most `tolerance` times the larger of 1 and the largest value expected.
#[track_caller]
pub(crate) fn close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "lengths differ");
    let scale = expected.iter().fold(1.0f32, |scale, e| scale.max(e.abs()));
    for (at, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * scale, "at {at}: got {g}, expected {e}");
    }
}
