//! Shapes past one tile of a kernel in every dimension, and off its multiples: tiles are of 64 rows
//! and columns and 16 steps.

use std::sync::LazyLock;

use sepal_conformance::{Backend, Word, blocks, values};
use sepal_core::arena::{Dtype, Slot};
use sepal_core::backend::{Bank, Host, HostMut, ObjectivePlace};
use sepal_core::layer::{BatchNorm, Conv2d, Dense, Layer, MaxPool, RELU};
use sepal_core::neighbour::{Nearest, Pair, Rows};
use sepal_core::reference::Reference;
use sepal_core::shape::Shape;
use sepal_core::stage::{Loss, Objective};
use sepal_cuda::{Cuda, OnCuda};

static DEVICE: LazyLock<OnCuda> = LazyLock::new(|| {
    sepal_stand_in::load();
    OnCuda::open(0).expect("a driver, real or not")
});

fn open(bytes: usize) -> Cuda {
    DEVICE.backend(bytes).expect("the device has the memory")
}

fn with(words: &mut [Word], work: &mut dyn FnMut(&mut dyn Backend)) {
    work(&mut open(size_of_val(words)));
}

/// 147 places, 130 filters, a reduction of 81 and of 1,170; the second's data gradient too.
#[test]
fn convolutions_of_many_tiles() {
    let conv = |filters| Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(filters, 3) });
    blocks::check(with, &[conv(130), RELU, conv(66)], Shape::new(3, 9, 7, 7));
}

/// 1,083 places are summed in five parts.
#[test]
fn sums_that_are_split() {
    let first = Layer::Conv2d(Conv2d { stride: (2, 1), ..Conv2d::new(5, 3) });
    let layers = [first, Layer::BatchNorm(BatchNorm::new()), RELU, Layer::MaxPool(MaxPool::new(2))];
    blocks::check(with, &layers, Shape::new(3, 2, 39, 21));
}

/// Groups of more filters than a tile.
#[test]
fn groups_of_many_filters() {
    let layer = Layer::Conv2d(Conv2d { groups: 2, stride: (2, 2), ..Conv2d::new(140, 3) });
    blocks::check(with, &[RELU, layer], Shape::new(2, 34, 13, 11));
}

#[test]
fn products_of_many_tiles() {
    let dense = |units| Layer::Dense(Dense { units, bias: true });
    blocks::check(with, &[dense(131), RELU, dense(70)], Shape::new(135, 83, 1, 1));
}

/// Rows with duplicates among them, and a mean that swamps the expanded form.
fn rows(count: usize, dim: usize, mean: f32) -> (Vec<f32>, Vec<u16>) {
    let mut data: Vec<f32> = values(7, count * dim).iter().map(|v| mean + v).collect();
    for at in (5..count).step_by(9) {
        let (before, own) = data.split_at_mut(at * dim);
        own[..dim].copy_from_slice(&before[(at - 3) * dim..(at - 2) * dim]);
    }
    (data, (0..count).map(|at| (at * 7 % 5) as u16).collect())
}

/// The kernels' distances have the reference's own bits, so that the winners are the same however
/// near they lie to each other.
#[test]
fn neighbours_are_the_references_bit_for_bit() {
    for (queries, bank, dim, mean) in [(203, 203, 67, 100.0), (70, 331, 130, 0.0), (1, 65, 1, 3.0)]
    {
        let ((q, ql), (b, bl)) = (rows(queries, dim, mean), rows(bank, dim, mean));
        let queries = Bank::Host(Rows { data: &q, dim, labels: &ql });
        let bank = Bank::Host(Rows { data: &b, dim, labels: &bl });
        let skip = (ql.len() == bl.len()).then_some(10);
        let mut found = [const { Vec::new() }; 2];
        let mut places = [const { Vec::new() }; 2];
        for (at, backend) in
            [&mut open(0) as &mut dyn Backend, &mut Reference::new(&mut [])].into_iter().enumerate()
        {
            found[at] = vec![Pair::NONE; ql.len()];
            backend.nearest(queries, bank, 10, skip, &mut found[at]).expect("the search runs");
            places[at] = vec![Nearest::NONE; 11 * ql.len()];
            backend.top_k(queries, bank, 10, skip, 11, &mut places[at]).expect("the search runs");
        }
        assert_eq!(found[0], found[1]);
        assert_eq!(places[0], places[1]);
    }
}

/// Batches past the 64 rows of a tile and the 256 features of a block.
#[test]
fn objectives_of_many_rows() {
    let (n, dim) = (150usize, 300usize);
    let (data, labels) = rows(n, dim, 0.5);
    let losses = [
        Loss::Triplet,
        Loss::Margin { margin: 9.0 },
        Loss::SoftNearest { temperature: 7.0 },
        Loss::SoftCentre { temperature: 7.0 },
    ];
    for loss in losses {
        let objective = Objective::Separation(loss);
        let shape = Shape::rows(n as u32, dim as u32);
        let mut results = Vec::new();
        let mut words = vec![Word::NAN; 80_000];
        let bytes = size_of_val(&words[..]);
        let mut cuda = open(bytes);
        let mut reference = Reference::new(&mut words);
        for backend in [&mut cuda as &mut dyn Backend, &mut reference] {
            let features = Slot::new(0, shape, Dtype::F32);
            let gradient = Slot { at: features.bytes(), ..features };
            let place = ObjectivePlace {
                features,
                gradient,
                labels: Slot::vector(2 * features.bytes(), n as u32, Dtype::U16),
                pairs: Slot::vector(2 * features.bytes() + 512, n as u32, Dtype::Pair),
                scratch: Slot::vector(
                    2 * features.bytes() + 512 + 16 * n,
                    backend.objective_scratch(&objective, features) as u32,
                    Dtype::U8,
                ),
            };
            backend.write(features, Host::F32(&data)).unwrap();
            backend.write(place.labels, Host::U16(&labels)).unwrap();
            let score = backend.objective(&objective, &place).expect("the objective runs");
            let mut gradient = vec![0.0; n * dim];
            backend.read(place.gradient, HostMut::F32(&mut gradient)).unwrap();
            results.push((score, gradient));
        }
        let [(cuda, cuda_gradient), (reference, gradient)] = &results[..] else { unreachable!() };
        assert_eq!(
            (cuda.anchors, cuda.skipped, cuda.correct),
            (reference.anchors, reference.skipped, reference.correct)
        );
        let wide = sepal_conformance::wide;
        let tolerance = sepal_conformance::Tolerance::SUM;
        tolerance.check("value", &[cuda.value], &wide(&[reference.value]));
        tolerance.check("gradient", cuda_gradient, &wide(gradient));
    }
}
