//! A net made ready at compile time computes what the backend for small cores computes.

use sepal_core::arena::Word;
use sepal_core::infer::Inference;
use sepal_core::layer::{
    Activation, BatchNorm, Conv2d, Dense, Dropout, Flatten, L2Normalise, Layer, MaxPool,
    Projection, Quantise, RELU, Residual, Standardise,
};
use sepal_core::micro::{Micro, Program, operations};
use sepal_core::net::{Input, Model, Net, Normalisation, Patch, Weights};
use sepal_core::plan::PlanError;
use sepal_core::reference::Reference;
use sepal_core::rng::{Purpose, Rng};
use sepal_core::shape::Shape;

const TANH: Layer = Layer::Activation(Activation::Tanh);

/// Norms within groups and alone, odd and even filters, kernels of 5, of 3 and of other columns.
const LAYERS: &[Layer] = &[
    Layer::Conv2d(Conv2d { pad: (2, 2), ..Conv2d::new(3, 5) }),
    Layer::BatchNorm(BatchNorm::new()),
    RELU,
    Layer::MaxPool(MaxPool::new(2)),
    Layer::Conv2d(Conv2d::new(4, 3)),
    Layer::Conv2d(Conv2d::new(2, 2)),
    Layer::Flatten(Flatten),
    Layer::Standardise(Standardise),
    Layer::Dense(Dense { units: 5, bias: true }),
    RELU,
    Layer::L2Normalise(L2Normalise),
    Layer::Dense(Dense { units: 3, bias: false }),
];
const NET: Net<'static> = net(LAYERS, &[4, 12]);
const OPERATIONS: usize = operations(&NET, LAYERS.len(), false);
static PROGRAM: Program<'static, OPERATIONS> = match Program::new(NET, false) {
    Ok(program) => program,
    Err(_) => panic!("the layers do not fit each other"),
};

const fn net<'m>(layers: &'m [Layer], blocks: &'m [u16]) -> Net<'m> {
    let normalisation = Normalisation::scalar(0.4, 0.3);
    let input = Input { shape: Shape::new(1, 2, 13, 12), normalisation };
    Net { input, layers, blocks, features: 1 }
}

fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed, Purpose::Sample, 0, 0);
    (0..len).map(|_| rng.uniform() + 0.1).collect()
}

#[test]
fn a_program_gives_the_backend_s_bits_in_the_backend_s_memory() {
    let plan = Inference::micro(NET, 1, false).unwrap();
    assert_eq!((OPERATIONS, PROGRAM.bytes()), (7, plan.bytes()));
    let flat = numbers(1, NET.params(LAYERS.len()).unwrap());
    let under = Weights::Flat(&flat);
    // One of a whole group, one from within a group on.
    let before = |layer| NET.params(layer).unwrap();
    let (conv, rest) = (numbers(2, before(5) - before(4)), numbers(3, before(12) - before(1)));
    let patches =
        [Patch { first: 4, last: 5, numbers: &conv }, Patch { first: 1, last: 12, numbers: &rest }];
    for weights in [under, Weights::Patched { under: &under, patches: &patches }] {
        let fill = |raw: &mut [u8]| raw.iter_mut().zip(0u32..).for_each(|(raw, i)| *raw = i as u8);
        let mut memory = vec![Word::NAN; Word::count(plan.bytes())];
        let (mut expected, mut found) = ([f32::NAN; 3], [f32::NAN; 3]);
        let mut backend = Micro::<false>::new(&mut memory);
        plan.run(&mut backend, &Model { net: NET, weights }, 1, fill, &mut expected).unwrap();
        memory.fill(Word::NAN);
        PROGRAM.run(&mut memory, &weights, fill, &mut found).unwrap();
        assert!(found.iter().all(|number| number.is_finite()));
        assert_eq!(found.map(f32::to_bits), expected.map(f32::to_bits));
    }
}

/// Residual units, the last with a projection, and dropout and flattening, which are no operations, where
/// what is added is read.
const SUMS: &[Layer] = &[
    Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(4, 3) }),
    RELU,
    Layer::Dropout(Dropout { rate: 0.5 }),
    Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(4, 3) }),
    Layer::BatchNorm(BatchNorm::new()),
    RELU,
    Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(4, 3) }),
    Layer::Residual(Residual::new(5)),
    RELU,
    Layer::Conv2d(Conv2d { stride: (2, 2), pad: (1, 1), ..Conv2d::new(5, 3) }),
    RELU,
    Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(5, 3) }),
    Layer::Residual(Residual {
        back: 3,
        project: Some(Projection { channels: 4, stride: (2, 2) }),
    }),
    RELU,
    Layer::Flatten(Flatten),
    Layer::Dense(Dense { units: 3, bias: true }),
];
const RESIDUAL: Net<'static> = net(SUMS, &[9, 14, 16]);
static RESIDUAL_PROGRAM: Program<'static, { operations(&RESIDUAL, SUMS.len(), false) }> =
    match Program::new(RESIDUAL, false) {
        Ok(program) => program,
        Err(_) => panic!("the layers do not fit each other"),
    };

/// The reference's bits, where nothing is lost that is added further on.
#[test]
fn residual_additions_give_the_reference_s_bits() {
    assert_eq!(RESIDUAL.check(), Ok(()));
    let flat = numbers(5, RESIDUAL.params(SUMS.len()).unwrap());
    let model = Model { net: RESIDUAL, weights: Weights::Flat(&flat) };
    let fill = |raw: &mut [u8]| raw.iter_mut().zip(0u32..).for_each(|(raw, i)| *raw = i as u8);
    let plan = Inference::reference(RESIDUAL, 1).unwrap();
    let mut memory = vec![Word::NAN; Word::count(plan.bytes())];
    let (mut expected, mut found) = ([f32::NAN; 3], [f32::NAN; 3]);
    plan.run(&mut Reference::new(&mut memory), &model, 1, fill, &mut expected).unwrap();
    let micro = Inference::micro(RESIDUAL, 1, false).unwrap();
    assert_eq!(RESIDUAL_PROGRAM.bytes(), micro.bytes());
    let mut memory = vec![Word::NAN; Word::count(micro.bytes())];
    micro.run(&mut Micro::<false>::new(&mut memory), &model, 1, fill, &mut found).unwrap();
    assert_eq!(found.map(f32::to_bits), expected.map(f32::to_bits));
    memory.fill(Word::NAN);
    found.fill(f32::NAN);
    RESIDUAL_PROGRAM.run(&mut memory, &model.weights, fill, &mut found).unwrap();
    assert_eq!(found.map(f32::to_bits), expected.map(f32::to_bits));
    assert!(found.iter().all(|number| number.is_finite()));
}

#[test]
fn what_cannot_run_is_refused() {
    let layers = [RELU, TANH];
    let other = net(&layers, &[1, 2]);
    assert_eq!(operations(&other, 2, false), 2);
    let refused = |made: Result<_, PlanError>| made.err();
    assert_eq!(
        refused(Program::<2>::new(other, false).map(|_| ())),
        Some(PlanError::Kernel { layer: 1 })
    );
    assert_eq!(
        refused(Program::<3>::up_to(other, 1, false).map(|_| ())),
        Some(PlanError::Range { first: 0, last: 1, layers: 3 })
    );
    // A residual addition of bytes has no kernel.
    let conv = Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(2, 3) });
    let layers = [Layer::Quantise(Quantise::BYTES), conv, Layer::Residual(Residual::new(1))];
    let bytes = net(&layers, &[3]);
    assert_eq!(bytes.check(), Ok(()));
    let plan = Inference::micro(bytes, 1, true).err();
    assert!(matches!(plan, Some(PlanError::Shape { layer: 2, .. })), "{plan:?}");
    let weights = Weights::Flat(&[]);
    let mut memory = vec![Word::ZERO; Word::count(PROGRAM.bytes())];
    assert!(PROGRAM.run(&mut memory, &weights, |_| (), &mut [0.0; 3]).is_err());
    assert!(PROGRAM.run(&mut memory[1..], &weights, |_| (), &mut [0.0; 3]).is_err());
    let flat = numbers(1, NET.params(LAYERS.len()).unwrap());
    assert!(PROGRAM.run(&mut memory, &Weights::Flat(&flat), |_| (), &mut [0.0; 4]).is_err());
}
