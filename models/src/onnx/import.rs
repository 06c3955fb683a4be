//! A graph as layers.

use std::collections::{HashMap, HashSet};

use prost::Message;
use sepal_core::layer::{
    Activation, AvgPool, BatchNorm, Conv2d, Dense, Dropout, Flatten, GlobalAvgPool, Layer, MaxPool,
    Projection, RELU, Residual, Role, SpaceToDepth, Window,
};
use sepal_core::net::{Input, Normalisation};
use sepal_core::shape::Shape;

use super::node::{self, Taps, axes, window};
use super::proto::{Graph, Model, Node, Tensor, ValueInfo, element};
use super::tensor::{Constant, fault};
use super::{OPSETS, OnnxError, Unsupported};
use crate::imported::{Ending, Imported, Piece, fold_norm};

/// Numbers that the weights of a net may have, before [`OnnxError::Weights`]: these, and one for
/// each byte of the file.
const ALLOWANCE: usize = 1 << 20;

/// Reads a net from the bytes of an ONNX file.
///
/// Convolutions, matrix products, pools, norms and activations become layers, whatever reshapes a
/// sample without moving its numbers becomes [`Flatten`] or nothing. Where a constant is added to
/// what a convolution or a dense layer gives, or it is multiplied, one number for each channel, that
/// goes into weights and bias; before the first layer it goes into the normalisation of samples. A
/// kernel that is dilated, or padded on one side, gets zeros where it reads nothing. A sum of two
/// activations is a residual addition where one of them is what the other was made of, or that behind a
/// convolution of 1x1 and a batch norm, which goes into the convolution. A softmax at
/// the end is [`Imported::ending`]. Batch norm stays a layer;
/// [`export::fold`](crate::export::fold) takes it away.
///
/// # Errors
/// A file that is none, that contradicts itself, or whose nodes are not all supported.
pub fn read(bytes: &[u8]) -> Result<Imported, OnnxError> {
    import(bytes, None)
}

/// As [`read`], for samples of a shape that the file leaves open.
///
/// # Errors
/// As [`read`]; a shape that contradicts the file.
pub fn read_shaped(bytes: &[u8], sample: Shape) -> Result<Imported, OnnxError> {
    import(bytes, Some(sample))
}

fn import(bytes: &[u8], sample: Option<Shape>) -> Result<Imported, OnnxError> {
    let message = |reason: String| OnnxError::Message { reason };
    let model = Model::decode(bytes).map_err(|error| message(error.to_string()))?;
    let graph = model.graph.as_ref().ok_or_else(|| message("it has no graph".to_owned()))?;
    let own = |domain: &str| domain.is_empty() || domain == "ai.onnx";
    let opset = model.opset_import.iter().find(|set| own(&set.domain)).map_or(0, |set| set.version);
    if !OPSETS.contains(&opset) {
        return Err(OnnxError::Version { found: opset });
    }
    let mut walk = Walk::new(graph, opset, bytes.len().saturating_add(ALLOWANCE))?;
    let shape = walk.enter(graph, sample)?;
    graph.node.iter().try_for_each(|node| walk.visit(node))?;
    walk.leave(graph, shape)
}

/// What a name stands for.
#[derive(Clone, Debug)]
enum Value<'a> {
    Constant(Constant<'a>),
    /// What the first `version` changes make of the input.
    Activation {
        dims: Vec<usize>,
        version: usize,
    },
    /// What a convolution beside the layers gives: the number of a [`Shortcut`].
    Shortcut(usize),
    /// What a node that is not supported gives.
    Unknown,
}

/// A convolution of 1x1, with the norm behind it, of which the output is added further on.
struct Shortcut {
    /// The activation that it reads.
    version: usize,
    project: Projection,
    dims: Vec<usize>,
    /// Weights and biases.
    numbers: [Vec<f32>; 2],
}

/// Where an activation came about.
#[derive(Clone, Copy)]
struct Made {
    /// How many layers gave it.
    layers: usize,
    /// What gave it gives something else since: it computes what stood behind it, too.
    changed: bool,
}

/// Why a node is no layer.
enum Stop {
    Unsupported(String),
    /// It reads what a node gives that is not supported.
    Behind,
    Broken(OnnxError),
}

impl From<OnnxError> for Stop {
    fn from(error: OnnxError) -> Self {
        Self::Broken(error)
    }
}

impl From<String> for Stop {
    fn from(reason: String) -> Self {
        Self::Unsupported(reason)
    }
}

impl From<&str> for Stop {
    fn from(reason: &str) -> Self {
        Self::Unsupported(reason.to_owned())
    }
}

struct Walk<'a> {
    opset: i64,
    values: HashMap<&'a str, Value<'a>>,
    initializers: HashMap<&'a str, &'a Tensor>,
    /// Names that some node gives.
    given: HashSet<&'a str>,
    /// Names that some node, or whoever runs the graph, reads.
    read: HashSet<&'a str>,
    pieces: Vec<Piece>,
    version: usize,
    /// Each version of the input.
    made: Vec<Made>,
    /// Outputs of nodes that stand beside the layers.
    beside: HashSet<&'a str>,
    shortcuts: Vec<Shortcut>,
    /// Factor and summand of each channel before the first layer.
    affine: Option<Vec<(f64, f64)>>,
    ending: Ending,
    /// The node of the ending.
    end: Option<&'a Node>,
    /// Numbers that weights may still take.
    left: usize,
    limit: usize,
    unsupported: Vec<Unsupported>,
}

impl<'a> Walk<'a> {
    fn new(graph: &'a Graph, opset: i64, limit: usize) -> Result<Self, OnnxError> {
        let mut initializers = HashMap::new();
        for tensor in &graph.initializer {
            if initializers.insert(tensor.name.as_str(), tensor).is_some() {
                return Err(fault(&tensor.name, "it is there twice"));
            }
        }
        let given = graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
        let inputs = graph.node.iter().flat_map(|node| &node.input).map(String::as_str);
        let read = inputs.chain(graph.output.iter().map(|output| output.name.as_str())).collect();
        Ok(Self {
            opset,
            values: HashMap::new(),
            initializers,
            given,
            read,
            pieces: Vec::new(),
            version: 0,
            made: vec![Made { layers: 0, changed: false }],
            beside: beside(graph),
            shortcuts: Vec::new(),
            affine: None,
            ending: Ending::Logits,
            end: None,
            left: limit,
            limit,
            unsupported: Vec::new(),
        })
    }

    /// Takes the graph's one input.
    fn enter(&mut self, graph: &'a Graph, sample: Option<Shape>) -> Result<Shape, OnnxError> {
        let stored = |info: &&ValueInfo| !self.initializers.contains_key(info.name.as_str());
        let inputs: Vec<&ValueInfo> = graph.input.iter().filter(stored).collect();
        let &[input] = inputs.as_slice() else {
            let names: Vec<&str> = inputs.iter().map(|info| info.name.as_str()).collect();
            let reason = format!("{} inputs, expected one: {}", names.len(), names.join(", "));
            return Err(OnnxError::Graph { reason });
        };
        let dims = input_dims(input, sample)?;
        let shape = shape(&dims).map_err(|reason| OnnxError::Graph {
            reason: format!("input `{}`: {reason}", input.name),
        })?;
        self.values.insert(&input.name, Value::Activation { dims, version: 0 });
        Ok(shape)
    }

    /// Gives the net, whose input is of `shape`.
    fn leave(mut self, graph: &Graph, shape: Shape) -> Result<Imported, OnnxError> {
        if !self.unsupported.is_empty() {
            return Err(OnnxError::Unsupported(self.unsupported));
        }
        let [output] = graph.output.as_slice() else {
            let names: Vec<&str> = graph.output.iter().map(|info| info.name.as_str()).collect();
            let reason = format!("{} outputs, expected one: {}", names.len(), names.join(", "));
            return Err(OnnxError::Graph { reason });
        };
        let last = match self.values.get(output.name.as_str()) {
            Some(Value::Activation { version, .. }) => *version == self.version,
            _ => false,
        };
        if !last {
            let reason = format!("output `{}`: expected what the last layer gives", output.name);
            return Err(OnnxError::Graph { reason });
        }
        let normalisation = match self.affine.take() {
            Some(affine) => normalisation(&affine),
            None => Normalisation::NONE,
        };
        Ok(Imported::new(Input { shape, normalisation }, self.pieces, self.ending)?)
    }

    fn visit(&mut self, node: &'a Node) -> Result<(), OnnxError> {
        let done = self.outputs(node).and_then(|()| self.apply(node));
        let value = match done {
            Ok(value) => value,
            Err(Stop::Broken(error)) => return Err(error),
            Err(Stop::Behind) => Value::Unknown,
            Err(Stop::Unsupported(reason)) => {
                self.refuse(node, reason);
                self.beyond(node)
            }
        };
        let mut first = Some(value);
        for output in &node.output {
            let value = first.take().unwrap_or(Value::Unknown);
            if !output.is_empty() && self.values.insert(output, value).is_some() {
                return Err(broken(node, output, "it is given twice"));
            }
        }
        Ok(())
    }

    fn refuse(&mut self, node: &Node, reason: String) {
        let operator = match node.domain.as_str() {
            "" | "ai.onnx" => node.op_type.clone(),
            domain => format!("{domain}.{}", node.op_type),
        };
        let node = node::name(node).to_owned();
        self.unsupported.push(Unsupported { node, operator, reason });
    }

    /// What a node gives that is not supported, for the sake of those behind it: where it is an
    /// activation of the shape that it read, they are looked at too.
    fn beyond(&mut self, node: &Node) -> Value<'a> {
        let keeps = matches!(node.op_type.as_str(), "Add" | "Sub" | "Mul" | "Div" | "Sigmoid");
        let dims = node.input.iter().find_map(|name| match self.values.get(name.as_str()) {
            Some(Value::Activation { dims, .. }) => Some(dims.clone()),
            _ => None,
        });
        match dims {
            Some(dims) if keeps => self.next(dims),
            _ => Value::Unknown,
        }
    }

    /// Only the first output of a node is given here.
    fn outputs(&self, node: &Node) -> Result<(), Stop> {
        let mut others = node.output.iter().skip(1);
        match others.find(|name| !name.is_empty() && self.read.contains(name.as_str())) {
            Some(name) => {
                Err(format!("its output `{name}` is read, expected its first alone").into())
            }
            None => Ok(()),
        }
    }

    fn next(&mut self, dims: Vec<usize>) -> Value<'a> {
        self.version += 1;
        self.made.push(Made { layers: self.pieces.len(), changed: false });
        Value::Activation { dims, version: self.version }
    }

    /// What input `at` stands for; `None` where the node leaves it out.
    fn value(&mut self, node: &'a Node, at: usize) -> Result<Option<Value<'a>>, OnnxError> {
        let Some(name) = node.input.get(at).filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        if let Some(value) = self.values.get(name.as_str()) {
            return Ok(Some(value.clone()));
        }
        if let Some(tensor) = self.initializers.get(name.as_str()) {
            return Ok(Some(Value::Constant(Constant::stored(name, tensor)?)));
        }
        Err(broken(
            node,
            name,
            match self.given.contains(name.as_str()) {
                true => "a later node gives it: nodes are out of order, or form a cycle",
                false => "no input, initialiser or node gives it",
            },
        ))
    }

    /// The shape of the activation that input `at` is, with its batch.
    fn activation(&mut self, node: &'a Node, at: usize) -> Result<Vec<usize>, Stop> {
        match self.value(node, at)? {
            Some(Value::Activation { dims, version }) if version == self.version => Ok(dims),
            Some(Value::Activation { .. } | Value::Shortcut(_)) => Err(branch(node, at)),
            Some(Value::Constant(constant)) => {
                let name = constant.name;
                Err(format!("`{name}` is a constant, expected what a layer gives").into())
            }
            Some(Value::Unknown) => Err(Stop::Behind),
            None => Err(format!("it has no input {at}").into()),
        }
    }

    /// The constant that input `at` is; `None` where the node leaves it out.
    fn optional(&mut self, node: &'a Node, at: usize) -> Result<Option<Constant<'a>>, Stop> {
        match self.value(node, at)? {
            Some(Value::Constant(constant)) => Ok(Some(constant)),
            Some(Value::Activation { .. } | Value::Shortcut(_)) => {
                let name = node.input.get(at).map_or("", String::as_str);
                Err(format!("`{name}` depends on the graph's input, expected a constant").into())
            }
            Some(Value::Unknown) => Err(Stop::Behind),
            None => Ok(None),
        }
    }

    fn constant(&mut self, node: &'a Node, at: usize) -> Result<Constant<'a>, Stop> {
        let constant = self.optional(node, at)?;
        constant.ok_or_else(|| format!("it has no input {at}, expected a constant").into())
    }

    /// The numbers of a constant, as weights of the net; `copies` of them.
    fn take(
        &mut self,
        node: &Node,
        constant: &Constant<'_>,
        copies: usize,
    ) -> Result<Vec<f32>, Stop> {
        // A tensor of a huge shape has no numbers at all.
        let numbers = constant.numbers()?;
        let taken = numbers.len().saturating_mul(copies);
        let Some(left) = self.left.checked_sub(taken) else {
            let node = node::name(node).to_owned();
            return Err(OnnxError::Weights { node, limit: self.limit }.into());
        };
        self.left = left;
        Ok(numbers)
    }

    /// One number.
    fn scalar(&mut self, node: &'a Node, at: usize) -> Result<Option<f32>, Stop> {
        let Some(constant) = self.optional(node, at)? else { return Ok(None) };
        match self.take(node, &constant, 1)?.as_slice() {
            &[number] => Ok(Some(number)),
            many => {
                Err(format!("`{}` has {} numbers, expected 1", constant.name, many.len()).into())
            }
        }
    }

    /// A layer that turns `from` into `to`.
    fn push(
        &mut self,
        node: &'a Node,
        layer: Layer,
        numbers: [Vec<f32>; 4],
        from: &[usize],
        to: Vec<usize>,
    ) -> Result<Value<'a>, Stop> {
        let (x, y) = (shape(from)?, shape(&to)?);
        let piece = Piece { layer, name: node::name(node).to_owned(), numbers };
        let Shape { c, h, w, .. } = x;
        if layer.output(x) != Some(y) {
            return Err(format!("samples of {c}x{h}x{w} do not fit it").into());
        }
        let tensors = layer.tensors(x).unwrap_or_default();
        for (role, numbers) in Role::ALL.into_iter().zip(&piece.numbers) {
            let (found, expected) = (numbers.len(), tensors.len(role));
            if found != expected as usize {
                let of = format!("expected {expected} for samples of {c}x{h}x{w}");
                return Err(format!("its {role:?} has {found} numbers, {of}").into());
            }
        }
        if let Some(end) = self.end.take() {
            self.refuse(end, "layers follow it, expected it at the end".to_owned());
        }
        self.pieces.push(piece);
        Ok(self.next(to))
    }

    /// A layer without parameters that keeps the shape.
    fn map(&mut self, node: &'a Node, layer: Layer) -> Result<Value<'a>, Stop> {
        let dims = self.activation(node, 0)?;
        self.push(node, layer, Default::default(), &dims, dims.clone())
    }

    fn apply(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        if !matches!(node.domain.as_str(), "" | "ai.onnx") {
            return Err("no layer computes it".into());
        }
        let first = node.output.first().map_or("", String::as_str);
        match node.op_type.as_str() {
            "Conv" if self.beside.contains(first) => self.shortcut(node),
            "BatchNormalization" if self.beside.contains(first) => self.shortcut_norm(node),
            "Conv" => self.conv(node),
            "Gemm" => self.gemm(node),
            "MatMul" => self.matmul(node),
            "BatchNormalization" => self.batch_norm(node),
            "Relu" => self.map(node, RELU),
            "Tanh" => self.map(node, Layer::Activation(Activation::Tanh)),
            "LeakyRelu" => {
                let slope = node::float(node, "alpha").unwrap_or(0.01);
                self.map(node, Layer::Activation(Activation::LeakyRelu { slope }))
            }
            "Clip" => self.clip(node),
            "Dropout" => self.dropout(node),
            "MaxPool" | "AveragePool" => self.pool(node),
            "GlobalAveragePool" | "GlobalMaxPool" => self.global_pool(node),
            "ReduceMean" => self.reduce_mean(node),
            "Flatten" => self.flatten(node),
            "Reshape" => self.reshape(node),
            "Squeeze" | "Unsqueeze" => self.squeeze(node),
            "Softmax" => self.softmax(node, Ending::Softmax),
            "LogSoftmax" => self.softmax(node, Ending::LogSoftmax),
            "Add" | "Sub" | "Mul" | "Div" => self.arithmetic(node),
            "Identity" => match self.value(node, 0)? {
                Some(value) => Ok(value),
                None => Err("it has no input".into()),
            },
            "SpaceToDepth" => self.space_to_depth(node),
            "Cast" => self.cast(node),
            "Constant" => constant(node),
            "Shape" => self.shape(node),
            "Gather" => self.gather(node),
            "Concat" => self.concat(node),
            "Transpose" => self.transpose(node),
            _ => {
                // What it reads must be there all the same.
                for at in 0..node.input.len() {
                    self.value(node, at)?;
                }
                Err("no layer computes it".into())
            }
        }
    }

    fn conv(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let dims = self.activation(node, 0)?;
        let weight = self.constant(node, 1)?;
        let (filters, kernel) = match weight.dims.as_slice() {
            &[filters, _, ref kernel @ ..] if weight.dims.len() == dims.len() => (filters, kernel),
            found => {
                let name = weight.name;
                return Err(
                    format!("`{name}` has shape {found:?}, expected {} sizes", dims.len()).into()
                );
            }
        };
        let kernel: Vec<i64> = kernel.iter().map(|&k| i64::try_from(k).unwrap_or(0)).collect();
        if let Some(given) = node::ints(node, "kernel_shape").filter(|&given| given != kernel) {
            return Err(format!(
                "kernel_shape {given:?}, expected that of its weights, {kernel:?}"
            )
            .into());
        }
        let [rows, columns] = axes(node, &dims, &kernel)?;
        let [rows, columns] = [rows.taps()?, columns.taps()?];
        let group = node::int(node, "group").unwrap_or(1);
        let small = |n: i64| u32::try_from(n).map_err(|_| format!("group {n}, expected 1 or more"));
        let conv = Conv2d {
            filters: u32::try_from(filters).map_err(|_| format!("{filters} filters"))?,
            kernel: (rows.kernel, columns.kernel),
            stride: (rows.stride, columns.stride),
            pad: (rows.pad, columns.pad),
            groups: small(group)?,
            bias: node.input.get(2).is_some_and(|name| !name.is_empty()),
        };
        let x = shape(&dims)?;
        let Some(y) = conv.output(x) else {
            let Shape { c, h, w, .. } = x;
            return Err(format!("samples of {c}x{h}x{w} do not fit it").into());
        };
        let taps = usize::from(conv.kernel.0) * usize::from(conv.kernel.1);
        let given: usize = kernel.iter().map(|&k| k.max(1) as usize).product();
        let numbers = self.take(node, &weight, taps.div_ceil(given.max(1)))?;
        let numbers = spread(numbers, &kernel, rows, columns);
        let bias = match self.optional(node, 2)? {
            Some(bias) => self.take(node, &bias, 1)?,
            None => Vec::new(),
        };
        let mut to = vec![batch(&dims), y.c as usize, y.h as usize, y.w as usize];
        if dims.len() == 3 {
            to.remove(2);
        }
        self.push(node, Layer::Conv2d(conv), [numbers, bias, Vec::new(), Vec::new()], &dims, to)
    }

    fn gemm(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let dims = self.activation(node, 0)?;
        if node::int(node, "transA").unwrap_or(0) != 0 {
            return Err("transA 1, expected samples as rows".into());
        }
        let mut weight = self.constant(node, 1)?;
        if node::int(node, "transB").unwrap_or(0) != 0 {
            weight = weight.transposed()?;
        }
        let scale = |name| f64::from(node::float(node, name).unwrap_or(1.0));
        let (alpha, beta) = (scale("alpha"), scale("beta"));
        let mut numbers = self.product(node, &dims, &weight)?;
        if alpha != 1.0 {
            numbers.iter_mut().for_each(|w| *w = (f64::from(*w) * alpha) as f32);
        }
        let units = weight.dims.get(1).copied().unwrap_or(0);
        let to = vec![batch(&dims), units];
        let mut bias = Vec::new();
        if let Some(constant) = self.optional(node, 2)? {
            let summand = self.take(node, &constant, 1)?;
            if !per_channel(summand.len(), &constant.dims, &to) {
                let (name, dims) = (constant.name, &constant.dims);
                let of = format!("is not one number for each of {units} units");
                return Err(format!("`{name}` of shape {dims:?} {of}").into());
            }
            let each = summand.iter().cycle().take(units);
            bias = each.map(|&b| (f64::from(b) * beta) as f32).collect();
        }
        self.dense(node, numbers, bias, &dims, to)
    }

    fn matmul(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let dims = self.activation(node, 0)?;
        let weight = self.constant(node, 1)?;
        let numbers = self.product(node, &dims, &weight)?;
        let to = vec![batch(&dims), weight.dims.get(1).copied().unwrap_or(0)];
        self.dense(node, numbers, Vec::new(), &dims, to)
    }

    /// The weights of a product of rows with `matrix`, whose columns are units, as core has them: a
    /// row for each unit.
    fn product(
        &mut self,
        node: &Node,
        dims: &[usize],
        matrix: &Constant<'a>,
    ) -> Result<Vec<f32>, Stop> {
        let (name, found) = (matrix.name, &matrix.dims);
        match (dims, matrix.dims.as_slice()) {
            (&[_, features], &[rows, units]) if features == rows && units > 0 => {}
            (&[_, features], _) => {
                return Err(format!(
                    "`{name}` has shape {found:?}, expected a matrix of {features} rows"
                )
                .into());
            }
            _ => return Err(format!("reads an activation of shape {dims:?}, expected rows").into()),
        }
        let matrix = matrix.clone().transposed()?;
        self.take(node, &matrix, 1)
    }

    fn dense(
        &mut self,
        node: &'a Node,
        weight: Vec<f32>,
        bias: Vec<f32>,
        from: &[usize],
        to: Vec<usize>,
    ) -> Result<Value<'a>, Stop> {
        let units = to.get(1).and_then(|&units| u32::try_from(units).ok()).unwrap_or(0);
        let layer = Layer::Dense(Dense { units, bias: !bias.is_empty() });
        self.push(node, layer, [weight, bias, Vec::new(), Vec::new()], from, to)
    }

    fn batch_norm(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let dims = self.activation(node, 0)?;
        let (numbers, eps) = self.norm(node)?;
        let share = 1.0 - f64::from(node::float(node, "momentum").unwrap_or(0.9));
        let norm = BatchNorm {
            affine: true,
            eps,
            // 1 - 0.9 is 0.1, whatever 0.9 is as f32.
            momentum: ((share * 1e6).round() / 1e6) as f32,
        };
        self.push(node, Layer::BatchNorm(norm), numbers, &dims, dims.clone())
    }

    /// Scale, shift, mean and variance of a batch norm, and what is added to the variance.
    fn norm(&mut self, node: &'a Node) -> Result<([Vec<f32>; 4], f32), Stop> {
        if node::int(node, "training_mode").unwrap_or(0) != 0 {
            return Err("training_mode 1, expected a net for inference".into());
        }
        if node::int(node, "spatial").unwrap_or(1) != 1 {
            return Err("spatial 0, expected statistics of channels".into());
        }
        let mut numbers: [Vec<f32>; 4] = Default::default();
        for (at, numbers) in (1..).zip(&mut numbers) {
            let constant = self.constant(node, at)?;
            *numbers = self.take(node, &constant, 1)?;
        }
        Ok((numbers, node::float(node, "epsilon").unwrap_or(1e-5)))
    }

    fn clip(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let bound = |given: Option<f32>, name| given.or_else(|| node::float(node, name));
        let low = bound(self.scalar(node, 1)?, "min").unwrap_or(f32::NEG_INFINITY);
        let high = bound(self.scalar(node, 2)?, "max").unwrap_or(f32::INFINITY);
        match (low, high) {
            (0.0, 6.0) => self.map(node, Layer::Activation(Activation::Relu6)),
            (0.0, f32::MAX..) => self.map(node, RELU),
            _ => Err(format!("from {low} to {high}, expected 0 to 6, or 0 to no limit").into()),
        }
    }

    fn dropout(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        if let Some(training) = self.optional(node, 2)? {
            let training = training.flag()?;
            if training {
                return Err("training_mode true, expected a net for inference".into());
            }
        }
        let rate = self.scalar(node, 1)?.or_else(|| node::float(node, "ratio")).unwrap_or(0.5);
        self.map(node, Layer::Dropout(Dropout { rate }))
    }

    fn pool(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let dims = self.activation(node, 0)?;
        let kernel = node::ints(node, "kernel_shape").unwrap_or_default();
        let window = window(node, axes(node, &dims, kernel)?)?;
        let average = node.op_type == "AveragePool";
        if average && window.pad != (0, 0) && node::int(node, "count_include_pad").unwrap_or(0) == 0
        {
            return Err("count_include_pad 0, expected that padding counts in means".into());
        }
        self.slide(node, window, average, &dims)
    }

    /// A pool over `window`.
    fn slide(
        &mut self,
        node: &'a Node,
        window: Window,
        average: bool,
        dims: &[usize],
    ) -> Result<Value<'a>, Stop> {
        let layer = match average {
            true => Layer::AvgPool(AvgPool { window }),
            false => Layer::MaxPool(MaxPool { window }),
        };
        let Some(y) = layer.output(shape(dims)?) else {
            let (Window { kernel: (r, s), .. }, size) = (window, dims.get(2..).unwrap_or_default());
            return Err(
                format!("a window of {r}x{s} over {size:?} is none that a layer has").into()
            );
        };
        let mut to = vec![batch(dims), y.c as usize, y.h as usize, y.w as usize];
        if dims.len() == 3 {
            to.remove(2);
        }
        self.push(node, layer, Default::default(), dims, to)
    }

    fn global_pool(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let dims = self.activation(node, 0)?;
        if node.op_type == "GlobalMaxPool" {
            let Shape { h, w, .. } = shape(&dims)?;
            let (Ok(h), Ok(w)) = (u8::try_from(h), u8::try_from(w)) else {
                return Err(format!("planes of {h}x{w}, expected at most 255 places").into());
            };
            let window = Window { kernel: (h, w), stride: (1, 1), pad: (0, 0) };
            return self.slide(node, window, false, &dims);
        }
        let to = dims.iter().enumerate().map(|(at, &d)| if at < 2 { d } else { 1 }).collect();
        self.push(node, Layer::GlobalAvgPool(GlobalAvgPool), Default::default(), &dims, to)
    }

    fn space_to_depth(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let dims = self.activation(node, 0)?;
        let size = node::int(node, "blocksize").unwrap_or(0);
        let factor = u8::try_from(size).map_err(|_| format!("blocksize {size}"))?;
        let layer = Layer::SpaceToDepth(SpaceToDepth { factor });
        match (dims.len(), layer.output(shape(&dims)?)) {
            (4, Some(y)) => {
                let to = vec![batch(&dims), y.c as usize, y.h as usize, y.w as usize];
                self.push(node, layer, Default::default(), &dims, to)
            }
            _ => Err(format!("squares of {size} of {dims:?}, expected that they divide it").into()),
        }
    }

    fn reduce_mean(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let dims = self.activation(node, 0)?;
        let mut axes = self.axes(node, dims.len(), false)?;
        axes.sort_unstable();
        if dims.len() < 3 || !axes.iter().copied().eq(2..dims.len()) {
            return Err(format!("over axes {axes:?} of {dims:?}, expected those of a plane").into());
        }
        let mut to: Vec<usize> = dims.iter().take(2).copied().collect();
        if node::int(node, "keepdims").unwrap_or(1) != 0 {
            to.resize(dims.len(), 1);
        }
        self.push(node, Layer::GlobalAvgPool(GlobalAvgPool), Default::default(), &dims, to)
    }

    /// The axes that input 1 or an attribute names, of a value with `rank` dimensions, or as many
    /// more as it names.
    fn axes(&mut self, node: &'a Node, rank: usize, more: bool) -> Result<Vec<usize>, Stop> {
        let given = match self.optional(node, 1)? {
            Some(constant) => constant.integers()?,
            None => node::ints(node, "axes").unwrap_or_default().to_vec(),
        };
        let rank = rank.saturating_add(if more { given.len() } else { 0 });
        let axes: Option<Vec<usize>> = given.iter().map(|&axis| place(axis, rank)).collect();
        let axes = axes.filter(|axes| axes.len() <= Constant::SHORT);
        axes.ok_or_else(|| format!("axes {given:?} of {rank} dimensions").into())
    }

    fn flatten(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let dims = self.activation(node, 0)?;
        let axis = node::int(node, "axis").unwrap_or(1);
        let cut = match axis == dims.len() as i64 {
            true => Some(dims.len()),
            false => place(axis, dims.len()),
        };
        let halves = cut.and_then(|at| dims.split_at_checked(at));
        match halves.map(|(head, tail)| (count(head), count(tail))) {
            Some((Some(rows), Some(columns))) => self.view(node, &dims, vec![rows, columns]),
            _ => Err(format!("axis {axis} of {dims:?}").into()),
        }
    }

    /// The same numbers in the same order under another shape.
    fn view(&mut self, node: &'a Node, from: &[usize], to: Vec<usize>) -> Result<Value<'a>, Stop> {
        let impossible = || format!("{from:?} becomes {to:?}, expected samples, or rows of them");
        let (Ok(x), Ok(y)) = (shape(from), shape(&to)) else { return Err(impossible().into()) };
        if batch(from) != batch(&to) || x.sample() != y.sample() {
            return Err(impossible().into());
        }
        if x == y {
            return Ok(self.next(to));
        }
        if y.plane() != 1 {
            return Err(impossible().into());
        }
        self.push(node, Layer::Flatten(Flatten), Default::default(), from, to)
    }

    fn reshape(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let asked = self.constant(node, 1)?.integers()?;
        let value = self.value(node, 0)?;
        let dims = match &value {
            Some(Value::Constant(constant)) => constant.dims.clone(),
            _ => self.activation(node, 0)?,
        };
        let copies = node::int(node, "allowzero").unwrap_or(0) == 0;
        let impossible = || format!("{dims:?} becomes {asked:?}");
        let (mut to, mut open) = (Vec::new(), None);
        for (at, &asked) in asked.iter().enumerate() {
            to.push(match usize::try_from(asked) {
                Ok(0) if copies => dims.get(at).copied().unwrap_or(0),
                Ok(size) => size,
                Err(_) if asked == -1 && open.is_none() => {
                    open = Some(at);
                    1
                }
                Err(_) => return Err(impossible().into()),
            });
        }
        let (Some(all), Some(known)) = (count(&dims), count(&to)) else {
            return Err(impossible().into());
        };
        if let Some(open) = open.and_then(|at| to.get_mut(at)) {
            *open = all.checked_div(known).unwrap_or(0);
        }
        match value {
            Some(Value::Constant(constant)) => match constant.reshaped(to) {
                Some(constant) => Ok(Value::Constant(constant)),
                None => Err(impossible().into()),
            },
            _ => self.view(node, &dims, to),
        }
    }

    fn squeeze(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let value = self.value(node, 0)?;
        let dims = match &value {
            Some(Value::Constant(constant)) => constant.dims.clone(),
            _ => self.activation(node, 0)?,
        };
        let mut to = dims.clone();
        if node.op_type == "Unsqueeze" {
            let mut axes = self.axes(node, dims.len(), true)?;
            axes.sort_unstable();
            axes.into_iter().for_each(|at| to.insert(at.min(to.len()), 1));
        } else {
            let mut axes = self.axes(node, dims.len(), false)?;
            if axes.is_empty() {
                axes = (0..dims.len()).filter(|&at| dims.get(at) == Some(&1)).collect();
            }
            if axes.iter().any(|&at| dims.get(at) != Some(&1)) {
                return Err(format!("axes {axes:?} of {dims:?}, expected sizes of 1").into());
            }
            let kept = dims.iter().enumerate().filter(|(at, _)| !axes.contains(at));
            to = kept.map(|(_, &d)| d).collect();
        }
        match value {
            Some(Value::Constant(constant)) => match constant.reshaped(to) {
                Some(constant) => Ok(Value::Constant(constant)),
                None => Err("a matrix that is transposed".into()),
            },
            _ => self.view(node, &dims, to),
        }
    }

    fn softmax(&mut self, node: &'a Node, ending: Ending) -> Result<Value<'a>, Stop> {
        let dims = self.activation(node, 0)?;
        let x = shape(&dims)?;
        let axis = node::int(node, "axis").unwrap_or(if self.opset < 13 { 1 } else { -1 });
        let at = place(axis, dims.len());
        let over = match at {
            // Everything from the axis on, together.
            Some(at) if self.opset < 13 => dims.get(at..).and_then(count),
            Some(at) => dims.get(at).copied(),
            None => None,
        };
        if at == Some(0) || over != x.sample().map(|sample| sample as usize) {
            return Err(
                format!("over axis {axis} of {dims:?}, expected all outputs of a sample").into()
            );
        }
        if let Some(end) = self.end.replace(node) {
            self.refuse(end, "layers follow it, expected it at the end".to_owned());
        }
        self.ending = ending;
        Ok(self.next(dims))
    }

    fn arithmetic(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let values = [self.value(node, 0)?, self.value(node, 1)?];
        let (at, constant) = match values {
            [Some(Value::Constant(_)), Some(Value::Constant(_))] => {
                return Err("it computes with constants alone".into());
            }
            [Some(Value::Activation { .. }), Some(Value::Constant(constant))] => (0, constant),
            [Some(Value::Constant(constant)), Some(Value::Activation { .. })] => (1, constant),
            [Some(Value::Constant(_)), Some(_)] | [Some(_), Some(Value::Constant(_))] => {
                return Err(Stop::Behind);
            }
            [Some(Value::Unknown), Some(_)] | [Some(_), Some(Value::Unknown)] => {
                return Err(Stop::Behind);
            }
            [Some(one), Some(other)] => return self.residual(node, one, other),
            _ => return Err("it has no two inputs".into()),
        };
        let dims = self.activation(node, at)?;
        let numbers = self.take(node, &constant, 1)?;
        let channels = shape(&dims)?.c as usize;
        if !per_channel(numbers.len(), &constant.dims, &dims) {
            let (name, found) = (constant.name, &constant.dims);
            let of = format!("is not one number for each channel of {dims:?}");
            return Err(format!("`{name}` of shape {found:?} {of}").into());
        }
        let each = numbers.iter().map(|&number| f64::from(number));
        // y = x * factor + summand.
        let affine: Vec<(f64, f64)> = match (node.op_type.as_str(), at) {
            ("Add", _) => each.map(|b| (1.0, b)).collect(),
            ("Sub", 0) => each.map(|b| (1.0, -b)).collect(),
            ("Sub", _) => each.map(|b| (-1.0, b)).collect(),
            ("Mul", _) => each.map(|a| (a, 0.0)).collect(),
            ("Div", 0) => each.map(|a| (1.0 / a, 0.0)).collect(),
            _ => return Err("a constant is divided by what a layer gives".into()),
        };
        if affine.iter().any(|(factor, _)| !factor.is_finite()) {
            return Err(format!("`{}` has a 0, expected a divisor", constant.name).into());
        }
        if self.end.is_some() {
            return Err("it changes what a softmax gives".into());
        }
        match self.pieces.last_mut() {
            None => self.normalise(&affine, channels)?,
            Some(piece) => scale(piece, &affine)?,
        }
        let layers = self.pieces.len();
        let same = self.made.iter_mut().rev().take_while(|made| made.layers == layers);
        same.for_each(|made| made.changed = true);
        Ok(self.next(dims))
    }

    /// The sum of what the last layer gives and of what gave that, or a shortcut from there.
    fn residual(
        &mut self,
        node: &'a Node,
        one: Value<'a>,
        other: Value<'a>,
    ) -> Result<Value<'a>, Stop> {
        if node.op_type != "Add" {
            return Err("it joins what two nodes give, expected their sum".into());
        }
        let is_last = |value: &Value<'_>| match value {
            Value::Activation { version, .. } => *version == self.version,
            _ => false,
        };
        let (at, last, other) = match (is_last(&one), is_last(&other)) {
            (true, _) => (0, one, other),
            (false, true) => (1, other, one),
            (false, false) => return Err(branch(node, 0)),
        };
        let Value::Activation { dims, .. } = last else { return Err(branch(node, at)) };
        let (version, of, project, numbers) = match other {
            Value::Activation { version, dims } => (version, dims, None, Default::default()),
            Value::Shortcut(at) => match self.shortcuts.get_mut(at) {
                Some(s) => {
                    let [weight, bias] = std::mem::take(&mut s.numbers);
                    let numbers = [weight, bias, Vec::new(), Vec::new()];
                    (s.version, s.dims.clone(), Some(s.project), numbers)
                }
                None => return Err(branch(node, 1 - at)),
            },
            _ => return Err(branch(node, 1 - at)),
        };
        if of != dims {
            return Err(format!("a sum of {of:?} and {dims:?}, expected one shape").into());
        }
        let name = node.input.get(1 - at).map_or("", String::as_str);
        let made = self.made.get(version).copied();
        let Some(Made { layers, changed: false }) = made else {
            let of = "expected that only layers read it, and no constants change it";
            return Err(format!("`{name}` is added further on: {of}").into());
        };
        let back = self.pieces.len().saturating_sub(layers);
        let Some(back) = u8::try_from(back).ok().filter(|&back| back > 0) else {
            return Err(format!("{back} layers lie between its inputs, expected 1 to 255").into());
        };
        let layer = Layer::Residual(Residual { back, project });
        self.push(node, layer, numbers, &dims, dims.clone())
    }

    /// A convolution beside the layers.
    fn shortcut(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let (from, version) = match self.value(node, 0)? {
            Some(Value::Activation { dims, version }) => (dims, version),
            Some(Value::Unknown) => return Err(Stop::Behind),
            _ => return Err(branch(node, 0)),
        };
        let weight = self.constant(node, 1)?;
        let kernel: Vec<i64> = weight.dims.iter().skip(2).map(|_| 1).collect();
        let [rows, columns] = axes(node, &from, &kernel)?;
        let [rows, columns] = [rows.taps()?, columns.taps()?];
        let group = node::int(node, "group").unwrap_or(1);
        let padded = (rows.pad, columns.pad, rows.kernel, columns.kernel) != (0, 0, 1, 1);
        let &[filters, channels, ..] = weight.dims.as_slice() else {
            return Err(format!("`{}` has no filters", weight.name).into());
        };
        let x = shape(&from)?;
        if group != 1 || padded || weight.dims.len() != from.len() || x.c as usize != channels {
            let of = "of 1x1, without padding, of one group, that fits what it reads";
            return Err(format!("it is added further on: expected a convolution {of}").into());
        }
        let filters = u32::try_from(filters).map_err(|_| format!("{filters} filters"))?;
        let project = Projection { channels: x.c, stride: (rows.stride, columns.stride) };
        let Some(y) = project.conv(filters).output(x) else {
            return Err(format!("strides of {:?} do not fit it", project.stride).into());
        };
        let numbers = self.take(node, &weight, 1)?;
        let bias = match self.optional(node, 2)? {
            Some(bias) => self.take(node, &bias, 1)?,
            None => vec![0.0; numbers.len() / channels.max(1)],
        };
        let mut dims = vec![batch(&from), y.c as usize, y.h as usize, y.w as usize];
        if from.len() == 3 {
            dims.remove(2);
        }
        self.shortcuts.push(Shortcut { version, project, dims, numbers: [numbers, bias] });
        Ok(Value::Shortcut(self.shortcuts.len() - 1))
    }

    /// A batch norm behind a convolution beside the layers, which goes into it.
    fn shortcut_norm(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let at = match self.value(node, 0)? {
            Some(Value::Shortcut(at)) => at,
            Some(Value::Unknown) => return Err(Stop::Behind),
            _ => return Err(branch(node, 0)),
        };
        let (numbers, eps) = self.norm(node)?;
        let Some(Shortcut { numbers: [weight, bias], .. }) = self.shortcuts.get_mut(at) else {
            return Err(branch(node, 0));
        };
        fold_norm(&numbers, eps, weight, bias)?;
        Ok(Value::Shortcut(at))
    }

    /// Changes what happens to samples before the first layer; `affine` is one for all channels, or
    /// one for each.
    fn normalise(&mut self, affine: &[(f64, f64)], channels: usize) -> Result<(), Stop> {
        let same = affine.iter().all(|one| Some(one) == affine.first());
        if channels > 4 && !same {
            return Err(format!("{channels} channels of samples differ, expected at most 4").into());
        }
        if affine.iter().any(|(factor, _)| *factor <= 0.0) {
            return Err("samples change their sign, expected to be divided by deviations".into());
        }
        let before = self.affine.get_or_insert_with(|| vec![(1.0, 0.0); channels.clamp(1, 4)]);
        for ((factor, summand), (by, plus)) in before.iter_mut().zip(affine.iter().cycle()) {
            *factor *= by;
            *summand = *summand * by + plus;
        }
        Ok(())
    }

    fn cast(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let to = node::int(node, "to").unwrap_or(0) as i32;
        match (self.value(node, 0)?, to) {
            (Some(Value::Constant(constant)), element::INT64 | element::INT32) => {
                Ok(Value::Constant(constant.as_integers()?))
            }
            (Some(value), element::FLOAT) => Ok(value),
            (_, to) => Err(format!("to type {to}, expected a constant, and int64 or int32").into()),
        }
    }

    fn shape(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let dims = match self.value(node, 0)? {
            Some(Value::Activation { dims, .. }) => dims,
            Some(Value::Constant(constant)) => constant.dims,
            Some(Value::Shortcut(_)) => return Err(branch(node, 0)),
            Some(Value::Unknown) => return Err(Stop::Behind),
            None => return Err("it has no input".into()),
        };
        let rank = dims.len() as i64;
        let place = |name, default| {
            let at = node::int(node, name).unwrap_or(default);
            (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize
        };
        let (start, end) = (place("start", 0), place("end", rank));
        let part = dims.get(start..end.max(start)).unwrap_or_default();
        let ints = part.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
        Ok(Value::Constant(Constant::ints(node::name(node), ints, false)))
    }

    fn gather(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let (from, at) = (self.constant(node, 0)?, self.constant(node, 1)?);
        if node::int(node, "axis").unwrap_or(0) != 0 || from.dims.len() != 1 || at.dims.len() > 1 {
            return Err("it picks from more than a list".into());
        }
        let (numbers, places) = (from.integers()?, at.integers()?);
        let pick = |&at: &i64| place(at, numbers.len()).and_then(|at| numbers.get(at).copied());
        let picked: Option<Vec<i64>> = places.iter().map(pick).collect();
        let picked = picked.ok_or_else(|| format!("places {places:?} of {numbers:?}"))?;
        Ok(Value::Constant(Constant::ints(node::name(node), picked, at.dims.is_empty())))
    }

    fn concat(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let mut all = Vec::new();
        for at in 0..node.input.len() {
            let constant = self.constant(node, at)?;
            if constant.dims.len() != 1 {
                return Err("it joins more than lists of whole numbers".into());
            }
            all.extend(constant.integers()?);
            // Each is short, and so is the list: they cannot grow by joining themselves.
            if all.len() > Constant::SHORT {
                return Err("it joins long lists".into());
            }
        }
        Ok(Value::Constant(Constant::ints(node::name(node), all, false)))
    }

    fn transpose(&mut self, node: &'a Node) -> Result<Value<'a>, Stop> {
        let constant = self.constant(node, 0)?;
        match (constant.dims.len(), node::ints(node, "perm")) {
            (2, None | Some([1, 0])) => Ok(Value::Constant(constant.transposed()?)),
            (rank, perm) => Err(format!("{perm:?} of {rank} dimensions, expected a matrix").into()),
        }
    }
}

/// Outputs of the nodes that stand beside the layers: in each sum of two nodes the convolution, with the
/// norm behind it or without, that reads what the other was made of, and that nobody else reads. Where
/// both are that it is the second.
fn beside(graph: &Graph) -> HashSet<&str> {
    /// Nodes that are gone back over at most: more layers than a residual addition spans.
    const MOST: usize = 1024;
    let mut gives: HashMap<&str, &Node> = HashMap::new();
    for node in &graph.node {
        for output in &node.output {
            gives.entry(output).or_insert(node);
        }
    }
    let mut readers: HashMap<&str, usize> = HashMap::new();
    for name in graph.node.iter().flat_map(|node| &node.input) {
        *readers.entry(name).or_default() += 1;
    }
    let once = |name: &str| readers.get(name) == Some(&1);
    let first = |name: &str| gives.get(name).and_then(|node| node.input.first());
    // A convolution of 1x1 can be told by its weights alone; that is seen when it is read.
    let shortcut = |sum: &'_ str| {
        let node = gives.get(sum).copied().filter(|_| once(sum))?;
        let conv = match (node.op_type.as_str(), node.input.first()) {
            ("BatchNormalization", Some(name)) if once(name) => {
                gives.get(name.as_str()).copied()?
            }
            _ => node,
        };
        (conv.op_type == "Conv").then_some((node, conv))
    };
    let dims: HashMap<&str, &[i64]> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), &tensor.dims[..])).collect();
    let point = |conv: &Node| {
        let dims = conv.input.get(1).and_then(|weight| dims.get(weight.as_str()));
        dims.is_none_or(|dims| dims.iter().skip(2).all(|&d| d == 1))
    };
    let mut beside = HashSet::new();
    for node in graph.node.iter().filter(|node| node.op_type == "Add") {
        let [one, other] = node.input.as_slice() else { continue };
        for (side, branch) in [(other, one), (one, other)] {
            let Some((last, conv)) = shortcut(side).filter(|(_, conv)| point(conv)) else {
                continue;
            };
            let Some(source) = conv.input.first() else { continue };
            let mut behind = Some(branch);
            for _ in 0..MOST {
                match behind {
                    Some(name) if name != source => behind = first(name),
                    _ => break,
                }
            }
            if behind == Some(source) && branch != source {
                let outputs = [last, conv].into_iter().filter_map(|node| node.output.first());
                beside.extend(outputs.map(String::as_str));
                break;
            }
        }
    }
    beside
}

fn broken(node: &Node, value: &str, reason: &'static str) -> OnnxError {
    OnnxError::Value { node: node::name(node).to_owned(), value: value.to_owned(), reason }
}

fn branch(node: &Node, at: usize) -> Stop {
    let name = node.input.get(at).map_or("", String::as_str);
    format!("`{name}` is not what the layer before gives: nets with branches are not supported")
        .into()
}

/// The constant of a `Constant` node.
fn constant(node: &Node) -> Result<Value<'_>, Stop> {
    let name = node::name(node);
    let unknown = || "its value is no tensor and no number".into();
    let attribute = node::only(node).ok_or_else(unknown)?;
    Ok(Value::Constant(match (attribute.name.as_str(), &attribute.t) {
        ("value", Some(tensor)) => Constant::stored(name, tensor)?,
        ("value_int", _) => Constant::ints(name, vec![attribute.i], true),
        ("value_ints", _) => Constant::ints(name, attribute.ints.clone(), false),
        ("value_float", _) => Constant::float(name, attribute.f),
        _ => return Err(unknown()),
    }))
}

/// An axis, which counts from the end where it is negative.
fn place(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let at = if axis < 0 { axis.checked_add(rank)? } else { axis };
    (0..rank).contains(&at).then_some(at as usize)
}

/// Elements of a value, where the address space holds so many.
fn count(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |all, &d| all.checked_mul(d))
}

fn batch(dims: &[usize]) -> usize {
    dims.first().copied().unwrap_or(1)
}

/// A sample of a value with dimensions N; N, D; N, C, L; or N, C, H, W.
fn shape(dims: &[usize]) -> Result<Shape, String> {
    let (c, h, w) = match *dims {
        [_] => (1, 1, 1),
        [_, d] => (d, 1, 1),
        [_, c, l] => (c, 1, l),
        [_, c, h, w] => (c, h, w),
        _ => return Err(format!("{} dimensions, expected 1 to 4", dims.len())),
    };
    let size = |n: usize| u32::try_from(n).ok();
    let shape = match (size(c), size(h), size(w)) {
        (Some(c), Some(h), Some(w)) => Some(Shape::new(1, c, h, w)),
        _ => None,
    };
    let shape = shape.filter(|shape| shape.sample().is_some_and(|sample| sample > 0));
    shape.ok_or_else(|| format!("samples of shape {dims:?}, expected 1 to 2^32 - 1 numbers"))
}

/// The input's dimensions, the batch's 1 where it is left open.
fn input_dims(input: &ValueInfo, sample: Option<Shape>) -> Result<Vec<usize>, OnnxError> {
    let name = &input.name;
    let wrong = |reason: String| OnnxError::Graph { reason: format!("input `{name}`: {reason}") };
    let tensor = input.r#type.as_ref().and_then(|r#type| r#type.tensor_type.as_ref());
    let tensor = tensor.ok_or_else(|| wrong("it is no tensor".to_owned()))?;
    let numbers = [element::FLOAT, element::DOUBLE, element::FLOAT16, element::BFLOAT16, 0];
    if !numbers.contains(&tensor.elem_type) {
        let found = tensor.elem_type;
        return Err(wrong(format!("elements of type {found}, expected numbers (1, 10, 11, 16)")));
    }
    // None where a size is left open.
    let found: Option<Vec<Option<usize>>> = tensor.shape.as_ref().map(|shape| {
        let size = |d: &super::proto::Dimension| d.dim_value.and_then(|d| usize::try_from(d).ok());
        shape.dim.iter().map(|d| size(d).filter(|&d| d > 0)).collect()
    });
    let asked = sample.map(|Shape { c, h, w, .. }| [c, h, w].map(|n| n as usize));
    let Some(found) = found else {
        let [c, h, w] =
            asked.ok_or_else(|| wrong("it has no shape, expected to be told".into()))?;
        return Ok(vec![1, c, h, w]);
    };
    let mut rest = found.iter().skip(1);
    let mut dims = vec![found.first().copied().flatten().unwrap_or(1)];
    let mismatch = |asked: [usize; 3]| {
        let size = |d: &Option<usize>| d.map_or_else(|| "?".to_owned(), |d| d.to_string());
        let found: Vec<String> = found.iter().skip(1).map(size).collect();
        let [c, h, w] = asked.map(|n| n as u32);
        OnnxError::Shape { asked: Shape::new(1, c, h, w), found: found.join("x") }
    };
    if let Some(asked) = asked {
        let given: &[usize] = match (found.len(), &asked) {
            (4, all) => all,
            (3, &[c, 1, l]) => &[c, l],
            (2, &[d, 1, 1]) => &[d],
            _ => return Err(mismatch(asked)),
        };
        if !given.iter().zip(&mut rest).all(|(given, found)| found.is_none_or(|f| f == *given)) {
            return Err(mismatch(asked));
        }
        dims.extend(given);
        return Ok(dims);
    }
    for (at, size) in (1..).zip(rest) {
        dims.push(
            size.ok_or_else(|| wrong(format!("size {at} is left open, expected to be told")))?,
        );
    }
    Ok(dims)
}

/// Whether `len` numbers of shape `from` are one for each channel of a value of shape `dims`, or one
/// for all.
fn per_channel(len: usize, from: &[usize], dims: &[usize]) -> bool {
    let Some(missing) = dims.len().checked_sub(from.len()) else { return false };
    let channels = if dims.len() == 1 { Some(1) } else { dims.get(1).copied() };
    let others = from.iter().enumerate().any(|(at, &size)| at + missing != 1 && size != 1);
    !others && (len == 1 || Some(len) == channels)
}

/// Multiplies and shifts what a convolution or a dense layer gives, by one for all channels or one
/// for each.
fn scale(piece: &mut Piece, affine: &[(f64, f64)]) -> Result<(), Stop> {
    let (rows, biased) = match &mut piece.layer {
        Layer::Conv2d(conv) => (conv.filters as usize, &mut conv.bias),
        Layer::Dense(dense) => (dense.units as usize, &mut dense.bias),
        other => {
            let name = other.name();
            let of = "expected a convolution or a dense layer before it, or no layer";
            return Err(format!("it changes what {name} gives, {of}").into());
        }
    };
    let [weight, bias, ..] = &mut piece.numbers;
    if !*biased && affine.iter().any(|(_, summand)| *summand != 0.0) {
        *biased = true;
        bias.resize(rows, 0.0);
    }
    let len = (weight.len() / rows.max(1)).max(1);
    for (row, (factor, _)) in weight.chunks_mut(len).zip(affine.iter().cycle()) {
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
    }
    for (bias, (factor, summand)) in bias.iter_mut().zip(affine.iter().cycle()) {
        *bias = (f64::from(*bias) * factor + summand) as f32;
    }
    Ok(())
}

/// `x * factor + summand` as `(x - mean) / std`.
fn normalisation(affine: &[(f64, f64)]) -> Normalisation {
    let mut all = Normalisation::NONE;
    // One for all channels, or one for each.
    let entries = if affine.len() == 1 { all.mean.len() } else { affine.len() };
    let pairs = affine.iter().cycle().take(entries);
    for ((mean, std), (factor, summand)) in all.mean.iter_mut().zip(&mut all.std).zip(pairs) {
        (*mean, *std) = ((-summand / factor) as f32, (1.0 / factor) as f32);
    }
    all
}

/// Kernels with zeros between and beside their taps.
fn spread(weights: Vec<f32>, kernel: &[i64], rows: Taps, columns: Taps) -> Vec<f32> {
    let sizes: Vec<usize> = kernel.iter().map(|&k| k.max(1) as usize).collect();
    let (height, width) = match *sizes.as_slice() {
        [width] => (1, width),
        [height, width] => (height, width),
        _ => return weights,
    };
    let (to_height, to_width) = (usize::from(rows.kernel), usize::from(columns.kernel));
    if (height, width) == (to_height, to_width) {
        return weights;
    }
    let mut spread = vec![0.0; weights.len() / (height * width) * to_height * to_width];
    let planes = weights.chunks(height * width).zip(spread.chunks_mut(to_height * to_width));
    for (from, to) in planes {
        for (at, &w) in from.iter().enumerate() {
            let row = rows.lead + at / width * rows.dilation;
            let column = columns.lead + at % width * columns.dilation;
            if let Some(to) = to.get_mut(row * to_width + column) {
                *to = w;
            }
        }
    }
    spread
}
