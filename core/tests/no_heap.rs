//! Inference, training, the search and the model file never allocate: an allocator that panics
//! watches.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use sepal_core::arena::Word;
use sepal_core::backend::{Backend, Bank};
use sepal_core::infer::Inference;
use sepal_core::layer::{
    BatchNorm, Conv2d, Dense, Dropout, Embedding, Flatten, KMaxPool, L2Normalise, Layer, MaxPool,
    Quantise, RELU, SpaceToDepth, Standardise,
};
use sepal_core::neighbour::{Pair, Rows};
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::optim::Rule;
use sepal_core::reference::Reference;
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Loss, Objective, Recipe, Stop};
use sepal_core::strategy::{Classifier, ForwardSi, Strategy, Window};
use sepal_core::train::{Feed, Session, StagePlan};

#[path = "../../tests/no-std/src/adapt.rs"]
mod adapt;

thread_local! {
    static FORBIDDEN: Cell<bool> = const { Cell::new(false) };
}

struct Watched;

fn check() {
    if FORBIDDEN.get() {
        FORBIDDEN.set(false); // the panic itself allocates
        panic!("core allocated");
    }
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        check();
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static WATCHED: Watched = Watched;

fn without_heap<R>(f: impl FnOnce() -> R) -> R {
    FORBIDDEN.set(true);
    let result = f();
    FORBIDDEN.set(false);
    result
}

const NET: Net<'static> = Net {
    input: Input { shape: Shape::new(1, 1, 8, 8), normalisation: Normalisation::NONE },
    layers: &[
        Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(4, 3) }),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::MaxPool(MaxPool::new(2)),
        Layer::Flatten(Flatten),
        Layer::Standardise(Standardise),
        Layer::Dropout(Dropout { rate: 0.25 }),
        Layer::Dense(Dense { units: 2, bias: true }),
    ],
    blocks: &[4, 8],
    features: 1,
};

/// The same 64 bytes as text in two rows.
const TEXT: Net<'static> = Net {
    input: Input { shape: Shape::new(1, 1, 2, 32), normalisation: Normalisation::BYTES },
    layers: &[
        Layer::Embedding(Embedding { tokens: 200, dim: 3 }),
        Layer::SpaceToDepth(SpaceToDepth { factor: 2 }),
        Layer::Conv2d(Conv2d { kernel: (1, 3), pad: (0, 1), ..Conv2d::new(4, 1) }),
        RELU,
        Layer::Quantise(Quantise { scale: 0.125, zero: 3 }),
        Layer::KMaxPool(KMaxPool { k: 3 }),
        Layer::Dense(Dense { units: 2, bias: true }),
    ],
    blocks: &[6, 7],
    features: 1,
};

const RECIPE: Recipe<'static> = Recipe {
    head: &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)],
    objective: Objective::Separation(Loss::Margin { margin: 0.2 }),
    epochs: 2,
    batch: 8,
    micro_batches: 1,
    rule: Rule::adam(),
    rate: 0.01,
    schedule: Schedule::Cosine { warmup: 1 },
    stop: Stop::Never,
};

const STRATEGY: ForwardSi<'static> = ForwardSi {
    block: RECIPE,
    heads: &[],
    window: Window::ONE,
    classifier: Recipe {
        head: &[],
        objective: Objective::CrossEntropy { smoothing: 0.1 },
        rule: Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-4 },
        ..RECIPE
    },
    form: Classifier::Whole,
};

struct Stripes(Shape);

impl Source for Stripes {
    fn len(&self) -> u32 {
        32
    }

    fn shape(&self) -> Shape {
        self.0
    }

    fn is_u8(&self) -> bool {
        true
    }

    fn read(
        &mut self,
        indices: &[u32],
        _: Option<Draw>,
        x: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let Batch::U8(x) = x else { return Err(SourceError::Batch { expected: 0, got: 0 }) };
        for ((image, label), index) in x.chunks_exact_mut(64).zip(labels).zip(indices) {
            *label = (index % 2) as u16;
            for (at, pixel) in (0u32..).zip(image) {
                let along = if index % 2 == 0 { at / 8 } else { at % 8 };
                *pixel = ((along + index / 2) % 2 * (90 + 5 * index)) as u8;
            }
        }
        Ok(())
    }
}

#[test]
fn the_watch_sees_an_allocation() {
    let seen = std::panic::catch_unwind(|| without_heap(|| vec![0u8; 100].len()));
    assert!(seen.is_err());
}

#[test]
fn training_all_stages_and_inference_need_no_heap() {
    for net in [NET, TEXT] {
        train_and_infer(net);
    }
}

fn train_and_infer(net: Net<'static>) {
    let mut memory = vec![Word::NAN; 1 << 14];
    let mut weights = vec![0.0; net.params(net.layers.len()).unwrap()];
    let mut stripes = Stripes(net.input.shape);
    let mut outcomes = [Default::default(); 4];
    let mut done = 0;
    let mut logits = [f32::NAN; 4];
    without_heap(|| {
        assert!(sepal_core::init::weights(&net, 7, &mut weights));
        let mut trained = [0.0; 1024];
        let trained = &mut trained[..weights.len()];
        while let Some(stage) = STRATEGY.next(&net, &outcomes[..done]) {
            let plan = StagePlan::reference(&net, &stage, Feed::BYTES).unwrap();
            let mut backend = Reference::new(&mut memory);
            let model = Model { net, weights: Weights::Flat(&weights) };
            let mut session = Session::new(net, stage, plan, 7, done as u16);
            session.load(&mut backend, &model).unwrap();
            outcomes[done] = session.run(&mut backend, &model, &mut stripes, |_| ()).unwrap();
            trained.copy_from_slice(&weights);
            session.store(&mut backend, trained).unwrap();
            weights.copy_from_slice(trained);
            done += 1;
        }
        let model = Model { net, weights: Weights::Flat(&weights) };
        let mut backend = Reference::new(&mut memory);
        let fill = |raw: &mut [u8]| {
            stripes.read(&[3, 4], None, Batch::U8(raw), &mut [0; 2]).unwrap();
        };
        let plan = Inference::reference(net, 2).unwrap();
        plan.run(&mut backend, &model, 2, fill, &mut logits).unwrap();
    });
    assert_eq!(done, 2);
    assert!(outcomes[..2].iter().all(|outcome| outcome.updates == 8));
    assert!(logits.iter().all(|logit| logit.is_finite()));
}

#[test]
fn search_needs_no_heap() {
    let data = [0.0, 1.0, 5.0, 6.0];
    let labels = [0, 0, 1, 1];
    let mut pairs = [Pair::NONE; 4];
    let mut memory = [Word::ZERO; 4];
    without_heap(|| {
        let rows = Bank::Host(Rows { data: &data, dim: 1, labels: &labels });
        Reference::new(&mut memory).nearest(rows, rows, 0, Some(0), &mut pairs).unwrap();
    });
    assert_eq!(pairs.map(|pair| pair.same.index), [1, 0, 3, 2]);
    assert_eq!(pairs.map(|pair| pair.other.index), [2, 2, 1, 1]);
}

#[test]
fn samples_and_classes_need_no_heap() {
    assert_eq!(without_heap(adapt::run), Some(adapt::DIGEST));
}

#[cfg(feature = "format")]
#[test]
fn the_model_file_needs_no_heap() {
    use sepal_core::format::{Checkpoint, Cursor, File, Meta, write_checkpoint};
    use sepal_core::train::Progress;

    let mut weights = vec![0.0; NET.params(NET.layers.len()).unwrap()];
    assert!(sepal_core::init::weights(&NET, 7, &mut weights));
    let model = Model { net: NET, weights: Weights::Flat(&weights) };
    let mut bytes = [0; 8192];
    without_heap(|| {
        let mut cursor = Cursor::new(&mut bytes);
        let checkpoint = Checkpoint {
            identity: 1,
            text: "no heap",
            progress: Progress::default(),
            outcomes: &[],
            state: [&weights, &[], &[], &[]],
        };
        let meta = Meta { classes: &["rows", "columns"], ..Meta::NONE };
        write_checkpoint(&model, &meta, &checkpoint, &mut cursor).unwrap();
        let file = File::open(cursor.written()).unwrap();
        let (mut layers, mut blocks) = ([RELU; 8], [0; 2]);
        let mut tensors = [File::NO_TENSOR; 7];
        let read = file.decode(&mut layers, &mut blocks, &mut tensors).unwrap();
        assert!(read.net == NET && file.class_name(1) == Some("columns"));
        assert_eq!(file.checkpoint().map(|saved| saved.state(0).len()), Some(weights.len()));
    });
}
