//! Every pass against the reference.

use sepal_core::arena::Layout;
use sepal_core::layer::{AvgPool, Conv2d, MaxPool, Window};
use sepal_core::shape::Shape;

use super::*;
use crate::blocks::{block, unblock};
use crate::check::values;

fn length(shape: Shape) -> usize {
    shape.len().unwrap() as usize
}

/// A tensor in a layout.
fn lying(shape: Shape, x: &[f32], layout: Layout) -> Vec<f32> {
    match layout {
        Layout::Nchw8c => {
            let mut blocks = vec![f32::NAN; layout.elements(shape).unwrap() as usize];
            block(shape, x, &mut blocks);
            blocks
        }
        _ => x.to_vec(),
    }
}

fn plain(shape: Shape, x: &[f32], layout: Layout) -> Vec<f32> {
    match layout {
        Layout::Nchw8c => {
            let mut plain = vec![f32::NAN; length(shape)];
            unblock(shape, x, &mut plain);
            // What lies past the channels is 0.
            assert!(lying(shape, &plain, layout) == x, "padding of {shape}");
            plain
        }
        _ => x.to_vec(),
    }
}

#[track_caller]
fn close(precision: Precision, what: &str, got: &[f32], expected: &[f64]) {
    let most = if precision == Precision::Fast { 1e-5 } else { 3e-6 };
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0f64, |scale, e| scale.max(e.abs()));
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(error <= most * scale, "{what} at {at}: {got} {expected}");
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// The results of all passes: y, dx, dw, db.
fn passes(
    (set, precision): (Instructions, Precision),
    conv: Conv2d,
    shape: Shape,
    layout: Layout,
) -> [Vec<f32>; 4] {
    let own = Conv::new(conv, shape, layout, precision).unwrap();
    let (out, t) = (conv.output(shape).unwrap(), conv.tensors(shape).unwrap());
    let (x, w) = (values(1, length(shape)), values(2, t.weight as usize));
    let (b, dy) = (values(3, t.bias as usize), values(4, length(out)));
    let blocks = Layout::Nchw8c.elements(out).unwrap() as usize;
    let x = lying(shape, &x, layout);
    let mut y = vec![f32::NAN; blocks];
    let mut scratch = vec![f32::NAN; own.forward_scratch(None)];
    let epilogue = Epilogue { scale: &[], shift: &b, clamp: Clamp::NONE };
    own.forward(set, &x, &w, &epilogue, None, &mut y, &mut scratch);
    let y = plain(out, &y, Layout::Nchw8c);
    let mut dx = vec![f32::NAN; x.len()];
    let (mut dw, mut db) = (values(5, w.len()), values(6, b.len()));
    let dy = lying(out, &dy, Layout::Nchw8c);
    let mut scratch = vec![f32::NAN; own.backward_scratch()];
    own.backward(set, &x, &w, &dy, Some(&mut dx), &mut dw, &mut db, &mut scratch);
    [y, plain(shape, &dx, layout), dw, db]
}

/// Every set of instructions with every precision.
fn ways() -> impl Iterator<Item = (Instructions, Precision)> {
    Instructions::all().flat_map(|set| [(set, Precision::Exact), (set, Precision::Fast)])
}

fn check(conv: Conv2d, shape: Shape) {
    let Some(out) = conv.output(shape) else { return };
    let t = conv.tensors(shape).unwrap();
    let (x, w) = (values(1, length(shape)), values(2, t.weight as usize));
    let (b, dy) = (values(3, t.bias as usize), values(4, length(out)));
    let (x, w, b, dy) = (wide(&x), wide(&w), wide(&b), wide(&dy));
    let mut y = vec![f64::NAN; dy.len()];
    conv.forward(shape, &x, &w, &b, &mut y);
    let mut dx = vec![f64::NAN; x.len()];
    let (mut dw, mut db) = (wide(&values(5, w.len())), wide(&values(6, b.len())));
    conv.backward(shape, &x, &w, &dy, Some(&mut dx), &mut dw, &mut db);
    for with in ways() {
        let results = [Layout::Nchw8c, Layout::Nchw].map(|layout| {
            let what = format!("{with:?} {layout:?} {shape} {conv:?}");
            let got = passes(with, conv, shape, layout);
            for (name, (got, expected)) in
                ["y", "dx", "dw", "db"].into_iter().zip(got.iter().zip([&y, &dx, &dw, &db]))
            {
                close(with.1, &format!("{name} {what}"), got, expected);
            }
            got
        });
        // What is kept of a prefix lies otherwise than within a chain, and both give the same bits.
        let [[y, ..], [own_y, ..]] = results;
        assert!(y == own_y, "{with:?} {shape} {conv:?}");
    }
}

/// The Winograd domain is taken where it is allowed and faster, and only there.
#[test]
fn the_caller_says_how_exactly() {
    let of = |precision, conv, shape| {
        let own = Conv::new(conv, shape, Layout::Nchw8c, precision).unwrap();
        (own.transformed().is_some(), own.transformed_back().is_some())
    };
    let conv = |r, s| Conv2d { kernel: (r, s), pad: (r / 2, s / 2), ..Conv2d::new(64, 1) };
    for (conv, shape) in [
        (conv(3, 3), Shape::new(8, 64, 16, 16)),
        (conv(3, 3), Shape::new(8, 64, 6, 6)),
        (conv(5, 5), Shape::new(8, 64, 8, 8)),
        (conv(1, 3), Shape::new(8, 64, 1, 100)),
        (conv(3, 1), Shape::new(8, 64, 13, 8)),
    ] {
        assert_eq!(of(Precision::Fast, conv, shape), (true, true));
        assert_eq!(of(Precision::Exact, conv, shape), (false, false));
        for layout in [Layout::Nchw8c, Layout::Nchw] {
            let [exact, fast] = [Precision::Exact, Precision::Fast]
                .map(|precision| passes((Instructions::best(), precision), conv, shape, layout));
            // Other roundings: the choice reaches the kernels of all three passes, but that of
            // backward data where x does not lie in blocks.
            for pass in 0..3 {
                let taken = pass != 1 || layout == Layout::Nchw8c;
                assert_eq!(exact[pass] != fast[pass], taken, "{pass} {shape} {conv:?} {layout:?}");
            }
        }
    }
    let shape = Shape::new(8, 64, 16, 16);
    assert_eq!(of(Precision::Fast, conv(4, 4), shape), (false, false));
    assert_eq!(of(Precision::Fast, Conv2d { stride: (2, 1), ..conv(5, 5) }, shape), (false, false));
}

/// Numbers in a row that anyone can draw again.
struct Draw(u64);

impl Draw {
    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
        from[(self.0 >> 33) as usize % from.len()]
    }
}

const CHANNELS: [u32; 13] = [1, 2, 3, 5, 6, 7, 8, 9, 15, 16, 17, 24, 33];
const SIDES: [u32; 9] = [1, 2, 3, 5, 7, 8, 13, 16, 28];
const KERNELS: [(u8, u8); 8] = [(1, 1), (1, 3), (3, 1), (3, 3), (5, 5), (7, 1), (2, 2), (4, 3)];

#[test]
fn drawn_shapes() {
    let mut draw = Draw(1);
    let mut done = 0;
    while done < 150 {
        let groups = draw.of(&[1, 1, 1, 2, 3]);
        let (c, k) = (draw.of(&CHANNELS) * groups, draw.of(&CHANNELS) * groups);
        let shape = Shape::new(draw.of(&[1, 2, 3, 5]), c, draw.of(&SIDES), draw.of(&SIDES));
        let conv = Conv2d {
            filters: k,
            kernel: draw.of(&KERNELS),
            stride: (draw.of(&[1, 1, 2, 3]), draw.of(&[1, 1, 2, 3])),
            pad: (draw.of(&[0, 1, 2, 3]), draw.of(&[0, 1, 2, 3])),
            groups,
            bias: draw.of(&[false, true]),
        };
        let work = conv.output(shape).map_or(0, length)
            * conv.kernel.0 as usize
            * conv.kernel.1 as usize
            * (c / groups) as usize;
        if work > 0 && work < 1_000_000 {
            check(conv, shape);
            done += 1;
        }
    }
}

#[test]
fn shapes_at_the_edges() {
    let conv = |k, r, s| Conv2d { kernel: (r, s), ..Conv2d::new(k, 1) };
    let cases = [
        (Shape::new(3, 1, 28, 28), Conv2d { pad: (2, 2), ..conv(6, 5, 5) }),
        (Shape::new(17, 6, 14, 14), conv(16, 5, 5)),
        (Shape::new(1, 2, 3, 2), Conv2d { pad: (4, 4), ..conv(3, 5, 5) }),
        (Shape::new(1, 2, 3, 2), Conv2d { pad: (4, 4), stride: (3, 3), ..conv(3, 3, 3) }),
        (Shape::new(1, 9, 4, 5), Conv2d { pad: (3, 2), ..conv(9, 1, 1) }),
        // Many samples of small images, with taps that are left out.
        (Shape::new(33, 16, 2, 2), Conv2d { pad: (1, 1), ..conv(24, 3, 3) }),
        (Shape::new(19, 9, 4, 3), Conv2d { pad: (1, 2), ..conv(40, 3, 5) }),
        (Shape::new(40, 3, 1, 1), Conv2d { pad: (2, 2), ..conv(8, 3, 3) }),
        // Channels in several chunks; strips of some rows, and of a part of one.
        (Shape::new(1, 96, 20, 18), Conv2d { pad: (1, 1), ..conv(8, 3, 3) }),
        (Shape::new(1, 72, 1, 700), Conv2d { pad: (0, 1), ..conv(40, 1, 3) }),
        (Shape::new(1, 3, 2, 1100), Conv2d { pad: (1, 3), stride: (1, 2), ..conv(5, 2, 7) }),
        // Large weights, whose gradient is split among channels.
        (Shape::new(2, 200, 3, 3), Conv2d { pad: (1, 1), ..conv(80, 3, 3) }),
        // A stride beyond the kernel: taps reach some places of dx only.
        (Shape::new(2, 9, 7, 8), Conv2d { stride: (3, 2), ..conv(10, 1, 1) }),
        (Shape::new(2, 3, 11, 11), Conv2d { stride: (4, 4), pad: (2, 2), ..conv(12, 5, 5) }),
        // Groups that are blocks, and not; each channel on its own.
        (Shape::new(3, 32, 5, 5), Conv2d { groups: 2, pad: (1, 1), ..conv(16, 3, 3) }),
        (Shape::new(3, 20, 5, 5), Conv2d { groups: 2, pad: (1, 1), ..conv(16, 3, 3) }),
        (Shape::new(3, 17, 9, 8), Conv2d { groups: 17, pad: (1, 1), ..conv(17, 3, 3) }),
        (Shape::new(3, 24, 9, 8), Conv2d { groups: 24, stride: (2, 2), ..conv(24, 3, 3) }),
        (Shape::new(3, 6, 9, 8), Conv2d { groups: 6, ..conv(12, 3, 3) }),
        (Shape::new(20, 70, 3, 3), Conv2d { groups: 70, pad: (1, 1), ..conv(70, 3, 3) }),
        (Shape::new(1, 40, 17, 40), Conv2d { groups: 40, pad: (3, 3), ..conv(40, 7, 7) }),
        (Shape::new(2, 9, 10, 7), Conv2d { groups: 9, stride: (3, 2), ..conv(9, 2, 3) }),
        // Few filters and channels.
        (Shape::new(2, 4, 9, 9), Conv2d { pad: (2, 1), ..conv(2, 3, 3) }),
        (Shape::new(2, 2, 9, 30), Conv2d { ..conv(4, 2, 5) }),
        (Shape::new(2, 6, 9, 5), Conv2d { groups: 2, ..conv(16, 3, 2) }),
        // Vectors of places, either side of their width; blocks turned into planes, one sample at a
        // time and several.
        (Shape::new(2, 1, 6, 15), Conv2d { pad: (1, 1), ..conv(16, 3, 3) }),
        (Shape::new(2, 3, 6, 16), Conv2d { pad: (1, 1), ..conv(33, 3, 3) }),
        (Shape::new(2, 4, 5, 17), Conv2d { pad: (2, 3), ..conv(12, 3, 5) }),
        (Shape::new(1, 5, 4, 33), Conv2d { stride: (1, 2), ..conv(9, 2, 3) }),
        (Shape::new(19, 6, 9, 9), Conv2d { pad: (1, 1), ..conv(17, 5, 5) }),
        (Shape::new(9, 2, 4, 3), Conv2d { pad: (2, 2), ..conv(10, 3, 3) }),
        (Shape::new(1, 2, 3, 1), Conv2d { pad: (1, 0), ..conv(10, 3, 1) }),
        (Shape::new(2, 16, 6, 7), Conv2d { groups: 2, pad: (1, 1), ..conv(16, 3, 3) }),
        // The same with channels in several chunks.
        (Shape::new(1, 3, 24, 21), Conv2d { pad: (1, 1), ..conv(150, 3, 3) }),
        // Short rows, in pairs and by all taps of a row, and rows just too long for it.
        (Shape::new(1, 6, 11, 12), conv(16, 3, 3)),
        (Shape::new(2, 9, 9, 17), conv(48, 5, 5)),
        (Shape::new(1, 8, 7, 18), conv(24, 4, 5)),
        (Shape::new(1, 7, 6, 19), conv(16, 2, 5)),
        (Shape::new(2, 5, 6, 14), conv(17, 3, 1)),
        (Shape::new(1, 10, 5, 13), conv(16, 2, 2)),
        // Taps of a row that are summed together.
        (Shape::new(2, 1, 7, 20), Conv2d { pad: (1, 5), ..conv(24, 2, 11) }),
        (Shape::new(2, 2, 7, 12), Conv2d { pad: (0, 3), ..conv(40, 3, 7) }),
        (Shape::new(1, 4, 8, 9), Conv2d { stride: (2, 2), pad: (2, 2), ..conv(33, 6, 4) }),
    ];
    for (shape, conv) in cases {
        check(conv, shape);
    }
}

/// By samples, by panels, and with other padding, of every kernel that the Winograd domain has.
#[test]
fn shapes_in_the_winograd_domain() {
    let conv = |k, r, s| Conv2d { kernel: (r, s), ..Conv2d::new(k, 1) };
    let cases = [
        (Shape::new(18, 40, 9, 10), Conv2d { pad: (1, 1), ..conv(70, 3, 3) }),
        (Shape::new(3, 136, 4, 4), Conv2d { pad: (1, 1), ..conv(170, 3, 3) }),
        (Shape::new(2, 33, 12, 11), Conv2d { pad: (0, 2), ..conv(33, 3, 3) }),
        (Shape::new(5, 40, 9, 11), Conv2d { pad: (2, 2), ..conv(33, 5, 5) }),
        (Shape::new(6, 33, 7, 8), Conv2d { pad: (4, 1), ..conv(70, 5, 5) }),
        (Shape::new(16, 40, 4, 4), Conv2d { pad: (2, 2), ..conv(72, 5, 5) }),
        (Shape::new(3, 33, 1, 157), Conv2d { pad: (0, 1), ..conv(70, 1, 3) }),
        (Shape::new(18, 40, 5, 20), Conv2d { pad: (0, 2), ..conv(33, 1, 3) }),
        (Shape::new(12, 136, 1, 11), Conv2d { pad: (0, 1), ..conv(170, 1, 3) }),
        (Shape::new(2, 33, 50, 3), Conv2d { pad: (1, 0), ..conv(40, 3, 1) }),
    ];
    for (shape, conv) in cases {
        let own = Conv::new(conv, shape, Layout::Nchw8c, Precision::Fast).unwrap();
        let taken = (own.transformed().is_some(), own.transformed_back().is_some());
        assert_eq!(taken, (true, true), "{shape} {conv:?}");
        check(conv, shape);
    }
}

#[test]
fn threads_change_no_bit() {
    let cases = [
        (Shape::new(37, 1, 28, 28), Conv2d { pad: (2, 2), ..Conv2d::new(6, 5) }),
        (Shape::new(21, 6, 14, 14), Conv2d::new(16, 5)),
        (Shape::new(1, 16, 28, 28), Conv2d { pad: (1, 1), ..Conv2d::new(40, 3) }),
        (Shape::new(20, 24, 4, 4), Conv2d { pad: (1, 1), ..Conv2d::new(72, 3) }),
        (Shape::new(3, 136, 4, 4), Conv2d { pad: (1, 1), ..Conv2d::new(300, 3) }),
        (Shape::new(20, 24, 6, 5), Conv2d { pad: (2, 2), ..Conv2d::new(72, 5) }),
        (Shape::new(5, 72, 1, 90), Conv2d { kernel: (1, 3), ..Conv2d::new(72, 1) }),
    ];
    let precisions = [Precision::Exact, Precision::Fast];
    for ((shape, conv), precision) in
        cases.into_iter().flat_map(|case| precisions.map(|precision| (case, precision)))
    {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let with = (Instructions::best(), precision);
            pool.install(|| passes(with, conv, shape, Layout::Nchw8c))
        };
        let one = run(1);
        assert!([2, 5].into_iter().all(|threads| run(threads) == one), "{shape}");
    }
}

/// Fewer samples never take more scratch, and a pass never takes more than it says.
#[test]
fn scratch_grows_with_the_batch() {
    for (shape, conv) in [
        (Shape::new(1, 3, 9, 9), Conv2d { pad: (1, 1), ..Conv2d::new(40, 3) }),
        (Shape::new(1, 64, 4, 4), Conv2d { pad: (1, 1), ..Conv2d::new(70, 3) }),
        (Shape::new(1, 512, 2, 2), Conv2d { pad: (1, 1), ..Conv2d::new(512, 3) }),
        (Shape::new(1, 40, 13, 6), Conv2d { pad: (0, 2), ..Conv2d::new(40, 3) }),
        (Shape::new(1, 64, 5, 6), Conv2d { pad: (2, 2), ..Conv2d::new(70, 5) }),
        (Shape::new(1, 256, 1, 9), Conv2d { kernel: (1, 3), ..Conv2d::new(300, 1) }),
        (Shape::new(1, 6, 6, 6), Conv2d::new(8, 3)),
    ] {
        for (precision, layout) in [Precision::Exact, Precision::Fast]
            .into_iter()
            .flat_map(|p| [Layout::Nchw8c, Layout::Nchw].map(|layout| (p, layout)))
        {
            let of = |n| Conv::new(conv, shape.with_n(n), layout, precision).unwrap();
            for pool in [None, Some(Pool::Max(Window::square(2)))] {
                let forward: Vec<_> = (1..70).map(|n| of(n).forward_scratch(pool)).collect();
                assert!(forward.is_sorted(), "{shape} {pool:?} {precision:?} {layout:?}");
            }
            let backward: Vec<_> = (1..70).map(|n| of(n).backward_scratch()).collect();
            assert!(backward.is_sorted(), "{shape} {precision:?} {layout:?}");
        }
    }
}

#[test]
fn what_is_fused() {
    let overlapping = Window { kernel: (3, 3), stride: (2, 2), pad: (1, 1) };
    let pools = [
        None,
        Some(Pool::Max(Window::square(2))),
        Some(Pool::Max(overlapping)),
        Some(Pool::Average(Window::square(2))),
        Some(Pool::Average(overlapping)),
    ];
    let clamps = [
        Clamp::NONE,
        Clamp { slope: 0.0, top: f32::INFINITY },
        Clamp { slope: 0.0, top: 6.0 },
        Clamp { slope: 0.1, top: f32::INFINITY },
    ];
    let shapes = [
        (Shape::new(5, 3, 8, 9), Conv2d { pad: (1, 1), ..Conv2d::new(40, 3) }),
        // In the Winograd domain, by samples and by panels.
        (Shape::new(19, 40, 8, 8), Conv2d { pad: (1, 1), ..Conv2d::new(40, 3) }),
        (Shape::new(3, 136, 4, 4), Conv2d { pad: (1, 1), ..Conv2d::new(100, 3) }),
        (Shape::new(3, 40, 7, 8), Conv2d { pad: (2, 2), ..Conv2d::new(40, 5) }),
        (Shape::new(3, 40, 4, 40), Conv2d { kernel: (1, 3), ..Conv2d::new(40, 1) }),
        (Shape::new(2, 9, 70, 33), Conv2d { pad: (1, 1), ..Conv2d::new(17, 3) }),
        (Shape::new(2, 6, 6, 6), Conv2d { groups: 2, ..Conv2d::new(10, 3) }),
    ];
    for (shape, conv) in shapes {
        let (out, t) = (conv.output(shape).unwrap(), conv.tensors(shape).unwrap());
        let (x, w) = (values(1, length(shape)), values(2, t.weight as usize));
        let (scale, shift) = (values(3, out.c as usize), values(4, out.c as usize));
        let fan_in = w.len() / scale.len();
        let scaled: Vec<f64> =
            w.iter().enumerate().map(|(i, w)| f64::from(w * scale[i / fan_in])).collect();
        let mut before = vec![f64::NAN; length(out)];
        conv.forward(shape, &wide(&x), &scaled, &wide(&shift), &mut before);
        let x = lying(shape, &x, Layout::Nchw8c);
        for (clamp, pool) in clamps.into_iter().flat_map(|c| pools.map(|p| (c, p))) {
            let (slope, top) = (f64::from(clamp.slope), f64::from(clamp.top));
            let mut y: Vec<f64> = before.iter().map(|y| y.max(slope * y).min(top)).collect();
            let mut pooled = out;
            if let Some(pool) = pool {
                let (h, w) = pool.size(out.h as usize, out.w as usize).unwrap();
                pooled = Shape::new(out.n, out.c, h as u32, w as u32);
                let from = core::mem::replace(&mut y, vec![f64::NAN; length(pooled)]);
                match pool {
                    Pool::Max(window) => MaxPool { window }.forward(out, &from, &mut y, None),
                    Pool::Average(window) => AvgPool { window }.forward(out, &from, &mut y),
                }
            }
            for (set, precision) in ways() {
                let own = Conv::new(conv, shape, Layout::Nchw8c, precision).unwrap();
                let epilogue = Epilogue { scale: &scale, shift: &shift, clamp };
                let mut got = vec![f32::NAN; Layout::Nchw8c.elements(pooled).unwrap() as usize];
                let mut scratch = vec![f32::NAN; own.forward_scratch(pool)];
                own.forward(set, &x, &w, &epilogue, pool, &mut got, &mut scratch);
                let got = plain(pooled, &got, Layout::Nchw8c);
                close(
                    precision,
                    &format!("{set:?} {precision:?} {shape} {clamp:?} {pool:?}"),
                    &got,
                    &y,
                );
            }
        }
    }
}

/// A padded pool may give far more places than it reads.
#[test]
fn tasks_of_padded_pools_have_a_lane_each() {
    let window = Window { kernel: (1, 1), stride: (1, 1), pad: (100, 100) };
    let (conv, shape) = (Conv2d::new(8, 1), Shape::new(1, 8, 1, 1));
    for (set, precision) in ways() {
        let own = Conv::new(conv, shape, Layout::Nchw8c, precision).unwrap();
        let pool = Some(Pool::Average(window));
        let (x, w) = (values(1, 8), values(2, 64));
        let mut y = vec![f32::NAN; 201 * 201 * 8];
        let mut scratch = vec![f32::NAN; own.forward_scratch(pool)];
        own.forward(set, &x, &w, &Epilogue::NONE, pool, &mut y, &mut scratch);
        let mut alone = vec![f32::NAN; 8];
        own.forward(set, &x, &w, &Epilogue::NONE, None, &mut alone, &mut scratch);
        let middle = (100 * 201 + 100) * 8;
        assert_eq!(y[middle..middle + 8], alone);
        assert_eq!(y.iter().filter(|y| **y != 0.0).count(), 8);
    }
}

/// Activations of infinite sums are those of the reference, in the Winograd domain too.
#[test]
fn infinities_are_clamped() {
    let (conv, shape) = (Conv2d { pad: (1, 1), ..Conv2d::new(32, 3) }, Shape::new(4, 32, 8, 8));
    let (x, w) = (values(1, length(shape)), values(2, 32 * 32 * 9));
    let shift = [f32::NEG_INFINITY, f32::INFINITY].repeat(16);
    for (set, precision) in ways() {
        let own = Conv::new(conv, shape, Layout::Nchw8c, precision).unwrap();
        for (slope, top, expected) in
            [(0.0, 6.0, [0.0, 6.0]), (0.5, f32::INFINITY, [shift[0], shift[1]])]
        {
            let epilogue = Epilogue { scale: &[], shift: &shift, clamp: Clamp { slope, top } };
            let mut y = vec![f32::NAN; x.len()];
            let mut scratch = vec![f32::NAN; own.forward_scratch(None)];
            own.forward(set, &x, &w, &epilogue, None, &mut y, &mut scratch);
            assert!(y.chunks(2).all(|y| y == expected), "{set:?} {precision:?} {slope}");
        }
    }
}
