//! Layers as a graph.

use prost::Message;
use sepal_core::layer::{
    Activation, AvgPool, AvgPoolTo, BatchNorm, Conv2d, Dense, Dropout, Layer, MaxPool, Residual,
    Role, SpaceToDepth, Window,
};
use sepal_core::net::{Model, Normalisation};
use sepal_core::shape::Shape;

use super::proto::{self, Attribute, Dimension, Graph, Node, Tensor, ValueInfo, element, kind};
use super::{MESSAGE_MAX, OnnxError};

/// The version of the operator set that is written, and of the messages.
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// Writes a net as the bytes of an ONNX file.
///
/// The graph takes any number of samples as `input`, before the net's normalisation (bytes are
/// divided by 255 before they get there), and gives `logits`. Tensors are named after the layer's
/// number and what they are, such as `0.weight`, and are f32, whatever they are stored as.
///
/// # Errors
/// A net that is none, layers that no operator is written for, weights that are missing.
pub fn write(model: &Model<'_>) -> Result<Vec<u8>, OnnxError> {
    let net = model.net;
    net.check()?;
    let shape = net.input.shape;
    let mut writer = Writer::new(rows(net.layers, shape));
    let input = value(writer.last.clone(), shape, writer.rows);
    writer.normalise(shape, net.input.normalisation);
    let mut refused = Vec::new();
    for (at, layer) in net.layers.iter().enumerate() {
        let x = net.shape(at)?;
        let tensors = layer.tensors(x).unwrap_or_default();
        let mut numbers: [Vec<f32>; 4] = Default::default();
        for ((role, stored), numbers) in
            Role::ALL.into_iter().zip(model.weights.layer(&net, at)).zip(&mut numbers)
        {
            numbers.resize(tensors.len(role) as usize, 0.0);
            if !numbers.is_empty() && !stored.widen(numbers) {
                return Err(OnnxError::Missing { layer: at });
            }
        }
        if !writer.layer(at, layer, x, numbers) {
            refused.push((at, layer.name()));
        }
    }
    if !refused.is_empty() {
        return Err(OnnxError::Layers(refused));
    }
    writer.finish(input, net.output()?)
}

/// Whether samples are rows from the start: no layer before the first dense one slides over a plane.
fn rows(layers: &[Layer], input: Shape) -> bool {
    let mut before = layers.iter().take_while(|layer| !matches!(layer, Layer::Dense(_)));
    let slides = |layer: &Layer| {
        matches!(layer, Layer::Conv2d(_) | Layer::MaxPool(_) | Layer::AvgPool(_))
            || matches!(layer, Layer::GlobalAvgPool(_) | Layer::AvgPoolTo(_))
            || matches!(layer, Layer::SpaceToDepth(_))
    };
    input.plane() == 1 && !before.any(slides)
}

struct Writer {
    nodes: Vec<Node>,
    tensors: Vec<Tensor>,
    /// The value that the next node reads, and whether it is a matrix of rows.
    last: String,
    rows: bool,
    /// The same for what reached each layer.
    reached: Vec<(String, bool)>,
}

impl Writer {
    fn new(rows: bool) -> Self {
        let (nodes, tensors, reached) = (Vec::new(), Vec::new(), Vec::new());
        Self { nodes, tensors, last: "input".to_owned(), rows, reached }
    }

    fn tensor(&mut self, name: String, dims: &[u32], numbers: &[f32]) -> String {
        self.tensors.push(Tensor {
            dims: dims.iter().map(|&d| i64::from(d)).collect(),
            data_type: element::FLOAT,
            name: name.clone(),
            raw_data: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
            ..Tensor::default()
        });
        name
    }

    /// A node that reads the last value and `constants`.
    fn node(&mut self, name: String, op: &str, constants: Vec<String>, attribute: Vec<Attribute>) {
        let read = std::mem::replace(&mut self.last, name.clone());
        self.nodes.push(Node {
            input: std::iter::once(read).chain(constants).collect(),
            output: vec![name.clone()],
            name,
            op_type: op.to_owned(),
            attribute,
            ..Node::default()
        });
    }

    fn normalise(&mut self, shape: Shape, normalisation: Normalisation) {
        if normalisation == Normalisation::NONE {
            return;
        }
        let Normalisation { mean, std } = normalisation;
        let of = |entries: [f32; 4]| -> Vec<f32> {
            let channels = if shape.c <= 4 { shape.c as usize } else { 1 };
            entries.into_iter().take(channels).collect()
        };
        let dims = |len: usize, rows| match rows {
            true => vec![1, len as u32],
            false => vec![1, len as u32, 1, 1],
        };
        for (op, name, numbers) in [("Sub", "mean", of(mean)), ("Div", "std", of(std))] {
            let dims = dims(numbers.len(), self.rows);
            let constant = self.tensor(format!("input.{name}"), &dims, &numbers);
            self.node(format!("input_{}", op.to_lowercase()), op, vec![constant], Vec::new());
        }
    }

    /// One layer; false where no operator is written for it.
    fn layer(&mut self, at: usize, layer: &Layer, x: Shape, numbers: [Vec<f32>; 4]) -> bool {
        let Some(y) = layer.output(x) else { return false };
        self.reached.push((self.last.clone(), self.rows));
        let name = format!("{at}_{}", layer.name());
        let [weight, bias, mean, variance] = numbers;
        match *layer {
            Layer::Dense(_) if !self.rows => self.flatten(format!("{at}_flatten")),
            Layer::Conv2d(_)
            | Layer::MaxPool(_)
            | Layer::AvgPool(_)
            | Layer::AvgPoolTo(_)
            | Layer::GlobalAvgPool(_)
            | Layer::SpaceToDepth(_)
                if self.rows =>
            {
                self.unsqueeze(format!("{at}_plane"));
            }
            _ => {}
        }
        match *layer {
            Layer::Conv2d(conv) => {
                let Conv2d { filters, kernel: (r, s), stride, pad, groups, .. } = conv;
                let dims = [filters, x.c / groups.max(1), r.into(), s.into()];
                let mut constants = vec![self.tensor(format!("{at}.weight"), &dims, &weight)];
                if conv.bias {
                    constants.push(self.tensor(format!("{at}.bias"), &[filters], &bias));
                }
                let mut attributes = window(Window { kernel: (r, s), stride, pad });
                attributes.push(int("group", groups.into()));
                self.node(name, "Conv", constants, attributes);
            }
            Layer::Dense(Dense { units, bias: biased }) => {
                let dims = [units, x.sample().unwrap_or(0)];
                let mut constants = vec![self.tensor(format!("{at}.weight"), &dims, &weight)];
                if biased {
                    constants.push(self.tensor(format!("{at}.bias"), &[units], &bias));
                }
                self.node(name, "Gemm", constants, vec![int("transB", 1)]);
            }
            Layer::BatchNorm(BatchNorm { affine, eps, momentum }) => {
                let c = x.c as usize;
                let (gamma, beta) = match affine {
                    true => (weight, bias),
                    false => (vec![1.0; c], vec![0.0; c]),
                };
                let all = [
                    ("weight", gamma),
                    ("bias", beta),
                    ("running_mean", mean),
                    ("running_var", variance),
                ];
                let tensor =
                    |(role, n): (&str, Vec<f32>)| self.tensor(format!("{at}.{role}"), &[x.c], &n);
                let constants = all.map(tensor).to_vec();
                let attributes = vec![float("epsilon", eps), float("momentum", 1.0 - momentum)];
                self.node(name, "BatchNormalization", constants, attributes);
            }
            Layer::Activation(Activation::Relu) => self.node(name, "Relu", Vec::new(), Vec::new()),
            Layer::Activation(Activation::Tanh) => self.node(name, "Tanh", Vec::new(), Vec::new()),
            Layer::Activation(Activation::Relu6) => {
                let bounds = [("min", 0.0), ("max", 6.0)];
                let tensor = |(role, n)| self.tensor(format!("{at}.{role}"), &[], &[n]);
                let constants = bounds.map(tensor).to_vec();
                self.node(name, "Clip", constants, Vec::new());
            }
            Layer::Activation(Activation::LeakyRelu { slope }) => {
                self.node(name, "LeakyRelu", Vec::new(), vec![float("alpha", slope)]);
            }
            Layer::MaxPool(MaxPool { window: w }) => {
                self.node(name, "MaxPool", Vec::new(), window(w));
            }
            Layer::AvgPool(AvgPool { window: w }) => self.average(name, w),
            Layer::AvgPoolTo(AvgPoolTo { .. }) => {
                let step = |from: u32, to: u32| match from.is_multiple_of(to) {
                    true => u8::try_from(from / to).ok(),
                    false => None,
                };
                match (step(x.h, y.h), step(x.w, y.w)) {
                    (Some(h), Some(w)) => {
                        let window = Window { kernel: (h, w), stride: (h, w), pad: (0, 0) };
                        self.average(name, window);
                    }
                    _ => return false,
                }
            }
            Layer::GlobalAvgPool(_) => {
                self.node(name, "GlobalAveragePool", Vec::new(), Vec::new());
            }
            Layer::SpaceToDepth(SpaceToDepth { factor }) => {
                self.node(name, "SpaceToDepth", Vec::new(), vec![int("blocksize", factor.into())]);
            }
            Layer::Residual(l) => return self.add(at, name, l, x, weight, bias),
            Layer::Dropout(Dropout { rate }) => {
                let constant = self.tensor(format!("{at}.ratio"), &[], &[rate]);
                self.node(name, "Dropout", vec![constant], Vec::new());
            }
            Layer::Flatten(_) if self.rows => {
                self.node(name, "Identity", Vec::new(), Vec::new());
            }
            Layer::Flatten(_) => self.flatten(name),
            Layer::Standardise(_) => {
                let dims = match self.rows {
                    true => vec![1, x.c],
                    false => vec![1, x.c, x.h, x.w],
                };
                let inverse = |&v: &f32| if v == 0.0 { 0.0 } else { 1.0 / f64::from(v).sqrt() };
                let scale: Vec<f32> = variance.iter().map(|v| inverse(v) as f32).collect();
                let mean = self.tensor(format!("{at}.mean"), &dims, &mean);
                self.node(format!("{at}_sub"), "Sub", vec![mean], Vec::new());
                let scale = self.tensor(format!("{at}.scale"), &dims, &scale);
                self.node(name, "Mul", vec![scale], Vec::new());
            }
            _ => return false,
        }
        true
    }

    /// A residual addition; false where its source is written as rows and x is not.
    fn add(
        &mut self,
        at: usize,
        name: String,
        l: Residual,
        x: Shape,
        weight: Vec<f32>,
        bias: Vec<f32>,
    ) -> bool {
        let source = at.checked_sub(l.back.into()).and_then(|first| self.reached.get(first));
        let Some((mut source, rows)) = source.cloned() else { return false };
        if rows != self.rows || rows && l.project.is_some() {
            return false;
        }
        if let Some(project) = l.project {
            let dims = [x.c, project.channels, 1, 1];
            let weight = self.tensor(format!("{at}.weight"), &dims, &weight);
            let bias = self.tensor(format!("{at}.bias"), &[x.c], &bias);
            let last = std::mem::replace(&mut self.last, source);
            let attributes = window(project.conv(x.c).window());
            self.node(format!("{at}_project"), "Conv", vec![weight, bias], attributes);
            source = std::mem::replace(&mut self.last, last);
        }
        self.node(name, "Add", vec![source], Vec::new());
        true
    }

    fn average(&mut self, name: String, w: Window) {
        let mut attributes = window(w);
        attributes.push(int("count_include_pad", 1));
        self.node(name, "AveragePool", Vec::new(), attributes);
    }

    fn flatten(&mut self, name: String) {
        self.node(name, "Flatten", Vec::new(), vec![int("axis", 1)]);
        self.rows = true;
    }

    /// Rows as planes of one place.
    fn unsqueeze(&mut self, name: String) {
        let axes = Tensor {
            dims: vec![2],
            data_type: element::INT64,
            name: format!("{name}.axes"),
            int64_data: vec![2, 3],
            ..Tensor::default()
        };
        let constant = axes.name.clone();
        self.tensors.push(axes);
        self.node(name, "Unsqueeze", vec![constant], Vec::new());
        self.rows = false;
    }

    fn finish(self, input: ValueInfo, y: Shape) -> Result<Vec<u8>, OnnxError> {
        let Self { nodes, tensors, last, rows, .. } = self;
        let graph = Graph {
            name: "sepal".to_owned(),
            input: vec![input],
            output: vec![value(last, y, rows)],
            node: nodes,
            initializer: tensors,
        };
        let opset = proto::OperatorSet { domain: String::new(), version: OPSET };
        let model = proto::Model {
            ir_version: IR_VERSION,
            producer_name: "sepal".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(graph),
            opset_import: vec![opset],
        };
        match model.encoded_len() {
            0..=MESSAGE_MAX => Ok(model.encode_to_vec()),
            bytes => Err(OnnxError::Large { bytes }),
        }
    }
}

/// A value of any number of samples.
fn value(name: String, shape: Shape, rows: bool) -> ValueInfo {
    let size = |n: u32| Dimension { dim_value: Some(n.into()), dim_param: None };
    let batch = Dimension { dim_value: None, dim_param: Some("N".to_owned()) };
    let mut dim = vec![batch, size(shape.c)];
    if !rows {
        dim.extend([size(shape.h), size(shape.w)]);
    }
    let shape = Some(proto::TensorShape { dim });
    let tensor_type = Some(proto::TensorType { elem_type: element::FLOAT, shape });
    ValueInfo { name, r#type: Some(proto::Type { tensor_type }) }
}

fn attribute(name: &str, kind: i32) -> Attribute {
    Attribute { name: name.to_owned(), kind, ..Attribute::default() }
}

fn int(name: &str, i: i64) -> Attribute {
    Attribute { i, ..attribute(name, kind::INT) }
}

fn float(name: &str, f: f32) -> Attribute {
    Attribute { f, ..attribute(name, kind::FLOAT) }
}

fn window(window: Window) -> Vec<Attribute> {
    let Window { kernel, stride, pad } = window;
    let ints = |name, ints: &[u8]| Attribute {
        ints: ints.iter().map(|&n| i64::from(n)).collect(),
        ..attribute(name, kind::INTS)
    };
    vec![
        ints("kernel_shape", &[kernel.0, kernel.1]),
        ints("strides", &[stride.0, stride.1]),
        ints("pads", &[pad.0, pad.1, pad.0, pad.1]),
    ]
}
