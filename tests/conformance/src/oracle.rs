//! Layers and chains in `f64`, by the layers' own functions, each tensor in memory of its own.

use sepal_core::backend::Phase;
use sepal_core::layer::{Layer, Role};
use sepal_core::reference::layer_seed;
use sepal_core::shape::Shape;

use crate::{len, values, wide};

/// One layer's parameters, in the order of [`Role::ALL`].
pub type Params = [Vec<f32>; 4];

/// Numbers that a layer could have as parameters.
pub fn params(layer: &Layer, x: Shape, seed: u64) -> Params {
    let tensors = layer.tensors(x).expect("the layer takes x");
    Role::ALL.map(|role| {
        let mut numbers = values(seed + role as u64, tensors.len(role) as usize);
        match (layer, role) {
            (Layer::BatchNorm(_), Role::Weight) => numbers.iter_mut().for_each(|w| *w += 1.5),
            (_, Role::Variance) => numbers.iter_mut().for_each(|v| *v = *v * *v + 0.1),
            _ => numbers.iter_mut().for_each(|w| *w *= 0.5),
        }
        numbers
    })
}

/// The phase of layer `index` of a chain, as its own functions take it.
pub const fn phase_of(phase: Phase, index: usize) -> Phase {
    match phase {
        Phase::Train { seed, update } => Phase::Train { seed: layer_seed(seed, index), update },
        other => other,
    }
}

/// One layer after its forward call.
#[derive(Clone, Debug)]
pub struct Forward {
    layer: Layer,
    shape: Shape,
    phase: Phase,
    x: Vec<f64>,
    params: [Vec<f64>; 4],
    saved: Vec<f64>,
    winners: Vec<u8>,
    places: Vec<u16>,
    /// The output.
    pub y: Vec<f64>,
}

/// What a backward call gives.
#[derive(Clone, Debug)]
pub struct Backward {
    /// The input's gradient.
    pub dx: Vec<f64>,
    /// The gradients of weights and biases.
    pub dparams: [Vec<f64>; 2],
}

impl Forward {
    /// Runs a layer.
    ///
    /// # Panics
    /// For a shape that the layer does not take.
    pub fn new(layer: &Layer, shape: Shape, phase: Phase, x: &[f64], params: &Params) -> Self {
        let out = layer.output(shape).expect("the layer takes the shape");
        let (n, c) = (shape.n as usize, shape.c as usize);
        let mut own = Self {
            layer: *layer,
            shape,
            phase,
            x: x.to_vec(),
            params: params.each_ref().map(|p| wide(p)),
            saved: vec![f64::NAN; n.max(2 * c)],
            winners: vec![],
            places: vec![],
            y: vec![f64::NAN; len(out)],
        };
        if own.x.len() == own.y.len() {
            own.y.copy_from_slice(x);
        }
        own.run();
        own
    }

    fn run(&mut self) {
        let Self { shape, phase, x, params, saved, y, .. } = self;
        let [w, b, mean, variance] = params;
        let (shape, phase) = (*shape, *phase);
        match self.layer {
            Layer::Conv2d(l) => l.forward(shape, x, w, b, y),
            Layer::BatchNorm(l) if phase == Phase::Eval => {
                l.forward_eval(shape, w, b, mean, variance, y);
            }
            Layer::BatchNorm(l) => {
                saved.truncate(2 * shape.c as usize);
                l.forward_train(shape, x, w, b, y, saved);
                let share = match phase {
                    Phase::Calibrate { seen } => f64::from(shape.n) / f64::from(seen + shape.n),
                    _ => f64::from(l.momentum),
                };
                l.update(shape, saved, share, mean, variance);
            }
            Layer::Activation(l) => l.forward(y),
            Layer::MaxPool(l) => {
                self.winners = vec![0; y.len()];
                l.forward(shape, x, y, Some(&mut self.winners));
            }
            Layer::AvgPool(l) => l.forward(shape, x, y),
            Layer::GlobalAvgPool(l) => l.forward(shape, x, y),
            Layer::AvgPoolTo(l) => l.forward(shape, x, y),
            Layer::Dense(l) => l.forward(shape, x, w, b, y),
            Layer::Dropout(l) => {
                if let Phase::Train { seed, update } = phase {
                    l.forward(shape, y, seed, update);
                }
            }
            Layer::Flatten(_) => {}
            Layer::Standardise(l) => {
                if let Phase::Calibrate { seen } = phase {
                    l.calibrate(shape, x, seen, mean, variance);
                }
                l.forward(shape, mean, variance, y);
            }
            Layer::L2Normalise(l) => {
                saved.truncate(shape.n as usize);
                l.forward(shape, y, saved);
            }
            Layer::ChannelStd(l) => l.forward(shape, x, y),
            Layer::Project(l) => l.forward(shape, x, y),
            Layer::Embedding(l) => l.forward(shape, x, w, y),
            Layer::KMaxPool(l) => {
                self.places = vec![0; y.len()];
                l.forward(shape, x, y, Some(&mut self.places));
            }
            Layer::SpaceToDepth(l) => l.forward(shape, x, y),
            Layer::Quantise(l) => l.forward(y),
            // The chain adds what it adds.
            Layer::Residual(_) => {}
            _ => panic!("a layer that the suite does not know: {}", self.layer.name()),
        }
    }

    /// Means and variances after the call.
    pub fn measured(&self) -> [&[f64]; 2] {
        let [_, _, mean, variance] = &self.params;
        [mean, variance]
    }

    /// Runs the layer backward.
    ///
    /// # Panics
    /// For a layer that the suite does not know.
    pub fn backward(&self, dy: &[f64]) -> Backward {
        let Self { shape, x, y, params, saved, .. } = self;
        let [w, b, _, variance] = params;
        let shape = *shape;
        // In-place layers begin with dy.
        let mut dx = if x.len() == y.len() { dy.to_vec() } else { vec![f64::NAN; x.len()] };
        let (mut dw, mut db) = (vec![0.0; w.len()], vec![0.0; b.len()]);
        match self.layer {
            Layer::Conv2d(l) => l.backward(shape, x, w, dy, Some(&mut dx), &mut dw, &mut db),
            Layer::BatchNorm(l) => l.backward(shape, x, w, saved, &mut dx, &mut dw, &mut db),
            Layer::Activation(l) => l.backward(y, &mut dx),
            Layer::MaxPool(l) => l.backward(shape, &self.winners, dy, &mut dx),
            Layer::AvgPool(l) => l.backward(shape, dy, &mut dx),
            Layer::GlobalAvgPool(l) => l.backward(shape, dy, &mut dx),
            Layer::AvgPoolTo(l) => l.backward(shape, dy, &mut dx),
            Layer::Dense(l) => l.backward(shape, x, w, dy, Some(&mut dx), &mut dw, &mut db),
            Layer::Dropout(l) => {
                if let Phase::Train { seed, update } = self.phase {
                    l.backward(shape, &mut dx, seed, update);
                }
            }
            Layer::Flatten(_) => {}
            Layer::Standardise(l) => l.backward(shape, variance, &mut dx),
            Layer::L2Normalise(l) => l.backward(shape, y, saved, &mut dx),
            Layer::ChannelStd(l) => l.backward(shape, x, dy, &mut dx),
            Layer::Project(l) => l.backward(shape, dy, &mut dx),
            Layer::Embedding(l) => l.backward(shape, x, dy, Some(&mut dx), &mut dw),
            Layer::KMaxPool(l) => l.backward(shape, &self.places, dy, &mut dx),
            Layer::SpaceToDepth(l) => l.backward(shape, dy, &mut dx),
            Layer::Quantise(l) => l.backward(y, &mut dx),
            Layer::Residual(_) => {}
            _ => panic!("a layer that the suite does not know: {}", self.layer.name()),
        }
        Backward { dx, dparams: [dw, db] }
    }
}

/// Layers in a row, each with its own phase.
pub fn forward(
    layers: &[Layer],
    shape: Shape,
    phase: Phase,
    x: &[f64],
    params: &[Params],
) -> Vec<Forward> {
    let (mut x, mut shape) = (x.to_vec(), shape);
    let mut steps = vec![];
    for (at, (layer, params)) in layers.iter().zip(params).enumerate() {
        let mut step = Forward::new(layer, shape, phase_of(phase, at), &x, params);
        if let Layer::Residual(l) = layer {
            let source: &Forward = &steps[at - usize::from(l.back)];
            let [w, b, ..] = &step.params;
            l.forward(source.shape, shape.c, &source.x, w, b, &mut step.y);
        }
        shape = layer.output(shape).expect("the layers fit each other");
        x = step.y.clone();
        steps.push(step);
    }
    steps
}

/// The gradients of all parameters, layer by layer.
pub fn backward(steps: &[Forward], dy: &[f64]) -> Vec<[Vec<f64>; 2]> {
    let mut dy = dy.to_vec();
    // What residual additions further on add to the gradient of each layer's input.
    let mut added: Vec<_> = steps.iter().map(|step| vec![0.0; step.x.len()]).collect();
    let mut gradients: Vec<_> = (0..steps.len())
        .rev()
        .map(|at| {
            let step = &steps[at];
            let Backward { dx, mut dparams } = step.backward(&dy);
            if let Layer::Residual(l) = step.layer {
                let first = at - usize::from(l.back);
                let (source, [w, ..], [dw, db]) = (&steps[first], &step.params, &mut dparams);
                let (shape, c, ds) = (source.shape, step.shape.c, &mut added[first]);
                l.backward(shape, c, &source.x, w, &dy, Some(ds), dw, db);
            }
            dy = dx.iter().zip(&added[at]).map(|(dx, added)| dx + added).collect();
            dparams
        })
        .collect();
    gradients.reverse();
    gradients
}

#[cfg(test)]
mod tests {
    use super::*;
    use sepal_core::layer::{Activation, BatchNorm, Conv2d, Projection, Residual};

    /// Gradients of whole chains, by central differences: additions one behind the other, one within
    /// another, with and without a projection, and two of one source.
    #[test]
    fn gradients_of_chains_are_derivatives() {
        let conv = |filters| Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(filters, 3) });
        let add = |back| Layer::Residual(Residual::new(back));
        let project = |back, channels, stride| {
            let project = Some(Projection { channels, stride: (stride, stride) });
            Layer::Residual(Residual { back, project })
        };
        let norm = Layer::BatchNorm(BatchNorm { affine: true, eps: 1e-3, momentum: 0.1 });
        let tanh = Layer::Activation(Activation::Tanh);
        let half = Layer::Conv2d(Conv2d { stride: (2, 2), pad: (1, 1), ..Conv2d::new(3, 3) });
        let chains = [
            vec![conv(2), norm, tanh, conv(2), add(3), tanh, half, norm, tanh, project(3, 2, 2)],
            vec![conv(2), conv(2), tanh, add(2), project(3, 2, 1), add(4), conv(1)],
        ];
        let shape = Shape::new(2, 2, 4, 4);
        for layers in chains {
            let mut reached = shape;
            let mut numbers = vec![];
            for (at, layer) in (1..).zip(&layers) {
                numbers.push(params(layer, reached, 50 * at));
                reached = layer.output(reached).expect("the layers fit each other");
            }
            let phase = Phase::Train { seed: 0, update: 0 };
            let x = wide(&values(9, len(shape)));
            let dy = wide(&values(8, len(reached)));
            let steps = forward(&layers, shape, phase, &x, &numbers);
            let gradients = backward(&steps, &dy);
            let value = |numbers: &[Params]| -> f64 {
                let steps = forward(&layers, shape, phase, &x, numbers);
                let y = &steps.last().expect("there are layers").y;
                y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
            };
            for (layer, roles) in gradients.iter().enumerate() {
                for (role, gradient) in roles.iter().enumerate() {
                    for (at, gradient) in gradient.iter().enumerate() {
                        let moved = |by: f32| {
                            let mut numbers = numbers.clone();
                            numbers[layer][role][at] += by;
                            (value(&numbers), f64::from(numbers[layer][role][at]))
                        };
                        let ((above, most), (below, least)) = (moved(1e-3), moved(-1e-3));
                        let slope = (above - below) / (most - least);
                        let bound = 1e-4 * gradient.abs().max(1.0);
                        assert!(
                            (slope - gradient).abs() < bound,
                            "layer {layer}, {role}, {at}: {gradient} against {slope}"
                        );
                    }
                }
            }
        }
    }
}
