//! No two tensors that somebody still reads overlap, whatever the layers are.

use proptest::prelude::*;
use sepal_core::arena::{Dtype, Slot};
use sepal_core::layer::{
    Activation, BatchNorm, Conv2d, Dropout, Flatten, GlobalAvgPool, L2Normalise, Layer, MaxPool,
    Pass, Projection, RELU, Residual,
};
use sepal_core::plan::{Chain, Eval, Place, PlanError, Reached, Train};
use sepal_core::shape::Shape;

/// A layer, or a residual addition of what lies so far back, every so many places of it where it is
/// projected.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Layer(Layer),
    Add(u8, Option<u8>),
}

fn choice() -> impl Strategy<Value = Choice> {
    let conv = |filters, stride| {
        let stride = (stride, stride);
        Layer::Conv2d(Conv2d { stride, pad: (1, 1), ..Conv2d::new(filters, 3) })
    };
    prop_oneof![
        3 => (prop_oneof![Just(2u32), Just(3)], 1u8..3).prop_map(move |(f, s)| Choice::Layer(conv(f, s))),
        1 => Just(Choice::Layer(Layer::BatchNorm(BatchNorm::new()))),
        1 => Just(Choice::Layer(RELU)),
        1 => Just(Choice::Layer(Layer::Activation(Activation::Tanh))),
        1 => Just(Choice::Layer(Layer::Dropout(Dropout { rate: 0.5 }))),
        1 => Just(Choice::Layer(Layer::Flatten(Flatten))),
        1 => Just(Choice::Layer(Layer::L2Normalise(L2Normalise))),
        1 => Just(Choice::Layer(Layer::MaxPool(MaxPool::new(2)))),
        1 => Just(Choice::Layer(Layer::GlobalAvgPool(GlobalAvgPool))),
        5 => (1u8..6).prop_map(|back| Choice::Add(back, None)),
        3 => (1u8..6, 1u8..3).prop_map(|(back, stride)| Choice::Add(back, Some(stride))),
    ]
}

/// Those of the choices that fit one behind the other.
fn fitting(choices: &[Choice], input: Shape) -> Vec<Layer> {
    let (mut layers, mut shapes) = (vec![], vec![input]);
    for choice in choices {
        let layer = match *choice {
            Choice::Layer(layer) => layer,
            Choice::Add(back, stride) => {
                let Some(first) = layers.len().checked_sub(back.into()) else { continue };
                let source: Shape = shapes[first];
                let channels = source.c;
                let project = stride.map(|s| Projection { channels, stride: (s, s) });
                Layer::Residual(Residual { back, project })
            }
        };
        layers.push(layer);
        let out = layer.output(shapes[layers.len() - 1]).filter(|out| out.len() > Some(0));
        match out.filter(|_| Chain::new(&layers).check(input).is_ok()) {
            Some(out) => shapes.push(out),
            None => _ = layers.pop(),
        }
    }
    layers
}

fn range(slot: Slot) -> (usize, usize) {
    (slot.at, slot.at + slot.bytes())
}

fn apart(a: Slot, b: Slot) -> bool {
    let ((a, a_past), (b, b_past)) = (range(a), range(b));
    a_past <= b || b_past <= a || a == a_past || b == b_past
}

fn needs(chain: &Chain<'_>, at: usize, reached: Reached, pass: Pass) -> sepal_core::layer::Needs {
    let own = chain.get(at).unwrap().needs(reached.x.shape, pass);
    chain.needs(at, reached, own).unwrap()
}

/// The tensors that somebody reads at or behind layer `at`, of those before it.
fn waiting<'p>(
    chain: &'p Chain<'_>,
    places: &'p [Place],
    at: usize,
) -> impl Iterator<Item = Slot> + 'p {
    (0..at)
        .filter(move |&first| first + usize::from(chain.held(first)) >= at)
        .map(|first| places[first].x)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn evaluation_overwrites_nothing_that_is_read_again(
        choices in prop::collection::vec(choice(), 1..20),
        n in 1u32..3,
    ) {
        let input = Shape::new(2, 2, 6, 6);
        let layers = fitting(&choices, input);
        let chain = Chain::new(&layers);
        let plan = Eval::reference(16, chain, input, Pass::Eval).unwrap();
        let (mut walk, mut places) = (plan.walk(n), vec![]);
        for at in 0..layers.len() {
            let held = chain.source(at).unwrap();
            let place = walk.step(needs(&chain, at, walk.reached(), Pass::Eval)).unwrap();
            for slot in [place.x, place.y, place.saved, place.scratch, place.source] {
                let (start, past) = range(slot);
                prop_assert!(slot.is_empty() || start >= 16 && past <= 16 + plan.bytes());
            }
            for (own, other) in [
                (place.saved, place.x), (place.saved, place.y), (place.scratch, place.x),
                (place.scratch, place.y), (place.scratch, place.saved), (place.scratch, place.source),
            ] {
                prop_assert!(apart(own, other));
            }
            prop_assert!(place.y.at == place.x.at || apart(place.x, place.y));
            if let Some(first) = held {
                prop_assert_eq!(place.source, { let p: Place = places[first]; p.x });
            }
            for slot in waiting(&chain, &places, at) {
                // The sum of the last to read it may lie there; a view does.
                let sum = slot == place.source && place.y.at == slot.at;
                let last = held.is_some_and(|first| first + usize::from(chain.held(first)) == at);
                let view = place.y.at == place.x.at && place.x.at == slot.at
                    && matches!(layers[at], Layer::Flatten(_) | Layer::Dropout(_));
                prop_assert!(apart(place.y, slot) || sum && last || view, "{layers:?} {at}");
                prop_assert!(apart(place.saved, slot) && apart(place.scratch, slot));
            }
            // The input that is held stays, too.
            let view = matches!(layers[at], Layer::Flatten(_) | Layer::Dropout(_));
            prop_assert!(chain.held(at) == 0 || view || apart(place.x, place.y), "{layers:?} {at}");
            places.push(place);
        }
    }

    #[test]
    fn training_overwrites_nothing_that_is_read_again(
        choices in prop::collection::vec(choice(), 1..20),
    ) {
        let input = Shape::new(2, 2, 6, 6);
        let layers = fitting(&choices, input);
        let chain = Chain::new(&layers);
        let x = Slot::new(0, input, Dtype::F32);
        let at = x.bytes();
        let plan = Train::reference(at, chain, input, 64).unwrap();
        let (mut walk, mut places) = (plan.walk(x), vec![]);
        for i in 0..layers.len() {
            let needs = needs(&chain, i, walk.reached(), Pass::Train);
            let place = walk.step(needs).unwrap();
            for slot in [place.y, place.saved, place.scratch, place.backward_scratch, place.dy,
                place.dx, place.source, place.dsource] {
                prop_assert!(slot.is_empty() || range(slot).1 <= at + plan.bytes());
            }
            for slot in waiting(&chain, &places, i) {
                let view = place.y.at == place.x.at && place.x.at == slot.at;
                let view = view && matches!(layers[i], Layer::Flatten(_));
                prop_assert!(apart(place.y, slot) || view, "{layers:?} {i}");
                prop_assert!(apart(place.saved, slot));
            }
            let view = matches!(layers[i], Layer::Flatten(_));
            prop_assert!(chain.held(i) == 0 || view || apart(place.x, place.y), "{layers:?} {i}");
            // Gradients lie beside what is kept, and that of a source beside the scratch.
            for kept in [place.x, place.y, place.saved, place.source] {
                for gradient in [place.dy, place.dx, place.dsource, place.backward_scratch] {
                    prop_assert!(apart(kept, gradient));
                }
            }
            prop_assert!(apart(place.dsource, place.backward_scratch));
            if let Some(first) = chain.source(i).unwrap() {
                let source: Place = places[first];
                prop_assert_eq!((place.source, place.dsource), (source.x, source.dx));
            }
            places.push(place);
        }
        // Where the gradient of a sum waits, from its addition down to its source, lies nothing that
        // a layer between reads or writes backward, nor another that waits.
        for last in 0..layers.len() {
            let Some(first) = chain.source(last).unwrap() else { continue };
            let wait = places[last].y;
            for (between, place) in places.iter().enumerate().take(last).skip(first) {
                let needs = layers[between].needs(place.x.shape, Pass::Train).unwrap();
                let reads_x = matches!(layers[between], Layer::Conv2d(_) | Layer::BatchNorm(_));
                prop_assert!(!reads_x || apart(wait, place.x), "{layers:?} {last}");
                prop_assert!(!needs.keeps_output || apart(wait, place.y), "{layers:?} {last}");
                prop_assert!(apart(wait, place.saved), "{layers:?} {last}");
                if chain.source(between).unwrap().is_some() {
                    prop_assert!(apart(wait, place.y), "{layers:?} {last}");
                    prop_assert!(apart(wait, place.source), "{layers:?} {last}");
                }
            }
            prop_assert!(apart(wait, places[last].source), "{layers:?} {last}");
        }
    }
}

#[test]
fn additions_that_cannot_be_made_are_refused() {
    let conv = |filters| Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(filters, 3) });
    let add = |back| Layer::Residual(Residual::new(back));
    let (input, c) = (Shape::new(1, 2, 4, 4), conv(2));
    let check = |layers: &[Layer]| Chain::new(layers).check(input);
    assert_eq!(check(&[c, add(1)]), Ok(()));
    assert_eq!(check(&[c, add(2)]), Err(PlanError::Source { layer: 1, back: 2 }));
    assert_eq!(check(&[c, add(0)]), Err(PlanError::Source { layer: 1, back: 0 }));
    let (source, wide) = (input, Shape { c: 3, ..input });
    assert_eq!(check(&[conv(3), add(1)]), Err(PlanError::Sum { layer: 1, input: wide, source }));
    // Three wait at once.
    assert_eq!(check(&[c, c, c, add(1), add(3), add(5)]), Err(PlanError::Sources { layer: 2 }));
    assert_eq!(check(&[c, c, add(1), add(3), c, add(1)]), Ok(()));
    let plan = |layers: &[Layer]| Eval::reference(0, Chain::new(layers), input, Pass::Eval).err();
    assert_eq!(plan(&[c, c, c, add(1), add(3), add(5)]), Some(PlanError::Sources { layer: 2 }));
    assert_eq!(plan(&[c, add(2)]), Some(PlanError::Source { layer: 1, back: 2 }));
}

/// A unit holds what it adds and two more tensors, whatever their number.
#[test]
fn units_in_a_row_take_no_more_than_one() {
    let conv = Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(4, 3) });
    let input = Shape::new(1, 4, 8, 8);
    let unit = [conv, RELU, conv, Layer::Residual(Residual::new(3)), RELU];
    for units in 1..5 {
        let layers = vec![unit; units].concat();
        let plan = Eval::reference(0, Chain::new(&layers), input, Pass::Eval).unwrap();
        assert_eq!(plan.bytes(), 3 * 4 * 64 * 4, "{units}");
    }
}
