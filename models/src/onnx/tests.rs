use proptest::prelude::*;
use prost::Message;
use sepal_core::layer::{
    Activation, AvgPool, AvgPoolTo, BatchNorm, Conv2d, Dense, Dropout, Flatten, GlobalAvgPool,
    KMaxPool, Layer, MaxPool, Project, Projection, RELU, Residual, SpaceToDepth, Standardise,
    Window,
};
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::shape::Shape;

use super::proto::{self, Attribute, Dimension, Graph, Node, Tensor, ValueInfo, element};
use super::*;
use crate::lenet::lenet5_layers;

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|at| (at * 37 % 101 + 1) as f32 / 64.0).collect()
}

fn input(c: u32, h: u32, w: u32) -> Input {
    Input { shape: Shape::new(1, c, h, w), normalisation: Normalisation::NONE }
}

/// A file with the layers.
fn written(input: Input, layers: &[Layer]) -> Result<Vec<u8>, OnnxError> {
    let blocks = [layers.len() as u16];
    let net = Net { input, layers, blocks: &blocks, features: 0 };
    let weights = numbers(net.params(layers.len()).unwrap());
    write(&Model { net, weights: Weights::Flat(&weights) })
}

fn small() -> Vec<u8> {
    let layers = [
        Layer::Conv2d(Conv2d::new(2, 3)),
        RELU,
        Layer::MaxPool(MaxPool::new(2)),
        Layer::Flatten(Flatten),
        Layer::Dense(Dense::new(3)),
    ];
    written(input(1, 6, 6), &layers).unwrap()
}

#[test]
fn what_is_written_is_read_as_it_was() {
    let window = Window { kernel: (3, 2), stride: (2, 1), pad: (1, 0) };
    let conv = Conv2d { kernel: (3, 2), stride: (1, 2), pad: (1, 0), ..Conv2d::new(4, 1) };
    let same = |filters| Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(filters, 3) });
    let half = Layer::Conv2d(Conv2d { stride: (2, 2), pad: (1, 1), ..Conv2d::new(4, 3) });
    let project = Some(Projection { channels: 2, stride: (2, 2) });
    let cases: [(Input, &[Layer]); 7] = [
        (
            input(2, 6, 7),
            &[
                same(2),
                RELU,
                same(2),
                Layer::Residual(Residual::new(2)),
                half,
                RELU,
                same(4),
                Layer::Residual(Residual { back: 3, project }),
                RELU,
                Layer::Residual(Residual {
                    back: 1,
                    project: Some(Projection { channels: 4, stride: (1, 1) }),
                }),
            ],
        ),
        (input(5, 1, 1), &[Layer::Dense(Dense::new(5)), RELU, Layer::Residual(Residual::new(2))]),
        (input(1, 28, 28), &lenet5_layers(10)),
        (
            Input {
                normalisation: Normalisation {
                    mean: [0.25, 0.5, 0.125, 0.0],
                    std: [0.5, 0.25, 2.0, 1.0],
                },
                ..input(3, 12, 12)
            },
            &[
                Layer::BatchNorm(BatchNorm { affine: true, eps: 1e-3, momentum: 0.01 }),
                Layer::SpaceToDepth(SpaceToDepth { factor: 2 }),
                Layer::Conv2d(Conv2d { groups: 4, bias: false, ..conv }),
                Layer::BatchNorm(BatchNorm { affine: true, ..BatchNorm::new() }),
                Layer::Activation(Activation::Relu6),
                Layer::AvgPool(AvgPool { window }),
                Layer::Activation(Activation::LeakyRelu { slope: 0.125 }),
                Layer::MaxPool(MaxPool { window: Window { kernel: (2, 1), ..window } }),
                Layer::Activation(Activation::Tanh),
                Layer::Dropout(Dropout { rate: 0.25 }),
                Layer::GlobalAvgPool(GlobalAvgPool),
                Layer::Dense(Dense { units: 3, bias: false }),
            ],
        ),
        (input(7, 1, 1), &[Layer::Dense(Dense::new(4)), RELU, Layer::Dense(Dense::new(2))]),
        (input(7, 1, 1), &[Layer::Dense(Dense::new(4)), RELU, Layer::Conv2d(Conv2d::new(3, 1))]),
        (input(4, 1, 9), &[Layer::Conv2d(Conv2d { kernel: (1, 3), ..conv }), RELU]),
    ];
    for (input, layers) in cases {
        let net = read(&written(input, layers).unwrap()).unwrap();
        let model = net.model();
        assert_eq!((model.net.input, model.net.layers), (input, layers));
        let Weights::Flat(found) = model.weights else { panic!("weights are in memory") };
        assert_eq!(found, numbers(found.len()));
        assert!(model.net.check().is_ok() && net.names().len() == layers.len());
    }
}

/// Layers that are something else when they are read.
#[test]
fn what_is_written_otherwise_computes_the_same() {
    use crate::data::{Dataset, Samples};
    use crate::features::Features;
    use sepal_core::reference::OnReference;

    let layers = [
        Layer::Conv2d(Conv2d { bias: false, ..Conv2d::new(2, 3) }),
        Layer::BatchNorm(BatchNorm::new()),
        Layer::AvgPoolTo(AvgPoolTo { h: 2, w: 3 }),
        Layer::Dense(Dense::new(4)),
        Layer::Standardise(Standardise),
    ];
    let input = input(2, 6, 5);
    let blocks = [5];
    let net = Net { input, layers: &layers, blocks: &blocks, features: 0 };
    let weights = numbers(net.params(5).unwrap());
    let model = Model { net, weights: Weights::Flat(&weights) };
    let back = read(&write(&model).unwrap()).unwrap();
    let samples = Samples::F32(numbers(3 * 60));
    let set = Dataset::new(input.shape, samples, vec![0; 3], vec!["a".to_owned()]).unwrap();
    let logits = |model: &Model<'_>| {
        Features::new(&OnReference, model, &mut &set, model.net.layers.len()).unwrap()
    };
    let (found, expected) = (logits(&back.model()), logits(&model));
    for (found, expected) in found.data().iter().zip(expected.data()) {
        assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{found} {expected}");
    }
}

#[test]
fn layers_that_are_not_written_are_all_named() {
    let layers = [
        Layer::AvgPoolTo(AvgPoolTo { h: 2, w: 2 }),
        RELU,
        Layer::KMaxPool(KMaxPool { k: 1 }),
        Layer::Project(Project { dim: 3, seed: 1 }),
    ];
    let refused = written(input(1, 1, 5), &layers).unwrap_err();
    let all = vec![(0, "avg_pool_to"), (2, "k_max_pool"), (3, "project")];
    assert_eq!(refused, OnnxError::Layers(all));
    let layers = [Layer::Dense(Dense::new(2))];
    let net = Net { input: input(3, 1, 1), layers: &layers, blocks: &[1], features: 0 };
    let refused = write(&Model { net, weights: Weights::Flat(&[1.0]) });
    assert_eq!(refused, Err(OnnxError::Missing { layer: 0 }));
}

fn node(op: &str, input: &[&str], output: &str, attribute: Vec<Attribute>) -> Node {
    Node {
        input: input.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        name: format!("the {op}"),
        op_type: op.to_owned(),
        attribute,
        ..Node::default()
    }
}

fn tensor(name: &str, dims: &[i64]) -> Tensor {
    let len = dims.iter().product::<i64>() as usize;
    Tensor {
        dims: dims.to_vec(),
        data_type: element::FLOAT,
        name: name.to_owned(),
        float_data: numbers(len),
        ..Tensor::default()
    }
}

fn ints(name: &str, ints: &[i64]) -> Attribute {
    Attribute { name: name.to_owned(), ints: ints.to_vec(), ..Attribute::default() }
}

fn value(name: &str, dims: &[i64]) -> ValueInfo {
    let dim = dims.iter().map(|&d| Dimension { dim_value: Some(d), dim_param: None }).collect();
    let shape = Some(proto::TensorShape { dim });
    let tensor_type = Some(proto::TensorType { elem_type: element::FLOAT, shape });
    ValueInfo { name: name.to_owned(), r#type: Some(proto::Type { tensor_type }) }
}

/// A graph from `x` to `y`.
fn graph(dims: &[i64], node: Vec<Node>, initializer: Vec<Tensor>) -> Vec<u8> {
    let graph = Graph {
        node,
        initializer,
        input: vec![value("x", dims)],
        output: vec![ValueInfo { name: "y".to_owned(), r#type: None }],
        ..Graph::default()
    };
    let opset = proto::OperatorSet { domain: String::new(), version: 17 };
    let model =
        proto::Model { graph: Some(graph), opset_import: vec![opset], ..Default::default() };
    model.encode_to_vec()
}

fn product(weight: Tensor) -> Vec<u8> {
    graph(&[1, 4], vec![node("MatMul", &["x", "w"], "y", vec![])], vec![weight])
}

/// The error's text has all `parts`.
#[track_caller]
fn refused(bytes: &[u8], parts: &[&str]) {
    let text = read(bytes).unwrap_err().to_string();
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn tensors_that_contradict_themselves_are_named() {
    assert!(read(&product(tensor("w", &[4, 3]))).is_ok());
    let good = tensor("w", &[4, 3]);
    let with = |change: fn(&mut Tensor)| {
        let mut tensor = good.clone();
        change(&mut tensor);
        product(tensor)
    };
    let w = "tensor `w`";
    refused(&with(|t| t.dims = vec![4, i64::MAX]), &[w, "no shape"]);
    refused(&with(|t| t.dims = vec![4, 1 << 40]), &[w, "12 elements, expected 4398046511104"]);
    refused(&with(|t| t.dims = vec![4, -3]), &[w, "no shape"]);
    refused(&with(|t| t.dims = vec![4, 2]), &[w, "12 elements, expected 8"]);
    refused(&with(|t| t.raw_data = vec![0; 47]), &[w, "47 bytes, expected 48"]);
    refused(&with(|t| t.data_location = 1), &[w, "another file"]);
    refused(&with(|t| t.data_type = 99), &[w, "type 99"]);
    refused(&with(|t| t.float_data[7] = f32::NAN), &[w, "element 7 is NaN"]);
    refused(&with(|t| t.name = "v".to_owned()), &["the MatMul", "`w`", "no input, initialiser"]);
    refused(&with(|t| t.dims = vec![3, 4]), &["the MatMul", "`w` has shape [3, 4]", "4 rows"]);
    let halves = |data_type, one: i32| {
        let int32_data = vec![one; 12];
        product(Tensor { data_type, int32_data, float_data: vec![], ..good.clone() })
    };
    for (data_type, one) in [(element::FLOAT16, 0x3c00), (element::BFLOAT16, 0x3f80)] {
        let net = read(&halves(data_type, one)).unwrap();
        let Weights::Flat(found) = net.model().weights else { panic!("weights are in memory") };
        assert_eq!(found, [1.0; 12]);
    }
}

#[test]
fn graphs_that_are_none_are_named() {
    let relu = |input: &str, output: &str| node("Relu", &[input], output, vec![]);
    let of = |nodes: Vec<Node>| graph(&[1, 2, 3, 3], nodes, vec![]);
    assert!(read(&of(vec![relu("x", "y")])).is_ok());
    refused(&of(vec![relu("a", "b"), relu("b", "a")]), &["the Relu", "`a`", "cycle"]);
    refused(&of(vec![relu("y", "y")]), &["the Relu", "`y`", "cycle"]);
    refused(&of(vec![relu("x", "y"), relu("y", "y")]), &["the Relu", "`y`", "given twice"]);
    refused(&of(vec![relu("x", "z")]), &["output `y`"]);
    refused(&of(vec![relu("x", "z"), relu("x", "y")]), &["the Relu", "`x`", "branches"]);
    refused(&graph(&[1, 2, 0, 3], vec![relu("x", "y")], vec![]), &["input `x`", "size 2"]);
    let huge = [1, 1 << 20, 1 << 20, 1];
    refused(&graph(&huge, vec![relu("x", "y")], vec![]), &["input `x`", "2^32"]);
    let two = graph(&[1, 2], vec![relu("x", "y")], vec![tensor("t", &[1]), tensor("t", &[1])]);
    refused(&two, &["tensor `t`", "twice"]);
    refused(&[], &["no ONNX model", "no graph"]);
    let shape = Shape::new(1, 2, 5, 5);
    let open = graph(&[1, 2, 0, 3], vec![relu("x", "y")], vec![]);
    let error = read_shaped(&open, shape).unwrap_err().to_string();
    assert!(error.contains("2x5x5") && error.contains("2x?x3"), "{error}");
    let net = read_shaped(&open, Shape::new(1, 2, 5, 3)).unwrap();
    assert_eq!(net.model().net.input.shape, Shape::new(1, 2, 5, 3));
}

/// A unit of a ResNet in all the orders that its nodes can have.
#[test]
fn shortcuts_are_read_wherever_they_stand() {
    let stride = || vec![ints("strides", &[2, 2])];
    let pads = || vec![ints("pads", &[1, 1, 1, 1]), ints("strides", &[2, 2])];
    let conv = node("Conv", &["x", "w", "b"], "a", vec![]);
    let shortcut = [
        node("Conv", &["a", "p"], "s", stride()),
        node("BatchNormalization", &["s", "c", "b3", "b3", "v"], "t", vec![]),
    ];
    let branch = [node("Conv", &["a", "w2"], "u", pads()), node("Relu", &["u"], "z", vec![])];
    let tensors = || {
        let mut v = tensor("v", &[3]);
        v.float_data = vec![1.0, 4.0, 0.25];
        vec![
            tensor("w", &[2, 1, 1, 1]),
            tensor("b", &[2]),
            tensor("p", &[3, 2, 1, 1]),
            tensor("c", &[3]),
            tensor("b3", &[3]),
            v,
            tensor("w2", &[3, 2, 3, 3]),
        ]
    };
    let sums = [["z", "t"], ["t", "z"]].map(|of| node("Add", &of, "y", vec![]));
    let mut read_before = None;
    for sum in sums {
        for first in [[&shortcut, &branch], [&branch, &shortcut]] {
            let nodes =
                [&[conv.clone()][..], first[0], first[1], std::slice::from_ref(&sum)].concat();
            let net = read(&graph(&[1, 1, 5, 5], nodes, tensors())).unwrap();
            let project = Some(Projection { channels: 2, stride: (2, 2) });
            assert_eq!(net.model().net.layers[3], Layer::Residual(Residual { back: 2, project }));
            let (layers, weights) = (net.model().net.layers.to_vec(), net.model().weights);
            let Weights::Flat(weights) = weights else { panic!("weights are in memory") };
            let read = (layers, weights.to_vec());
            // Weights and biases of the shortcut are the last: by the norm's definition.
            let of = |name: &str| {
                let tensors = tensors();
                let tensor = tensors.iter().find(|t| t.name == name).unwrap();
                tensor.float_data.iter().copied().map(f64::from).collect::<Vec<_>>()
            };
            let (p, c, b, v) = (of("p"), of("c"), of("b3"), of("v"));
            let factor = |k: usize| c[k] / (v[k] + f64::from(1e-5f32)).sqrt();
            let expected = (0..6).map(|at| p[at] * factor(at / 2));
            let expected = expected.chain((0..3).map(|k| b[k] - b[k] * factor(k)));
            let found = &read.1[read.1.len() - 9..];
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
            }
            assert_eq!(*read_before.get_or_insert(read.clone()), read);
        }
    }
}

#[test]
fn sums_that_are_no_residual_additions_say_why() {
    let dims = [1, 2, 4, 4];
    let run =
        |nodes: Vec<Node>, tensors, parts: &[&str]| refused(&graph(&dims, nodes, tensors), parts);
    let conv = |x, w, y| node("Conv", &[x, w], y, vec![]);
    let weights =
        || vec![tensor("w", &[2, 2, 1, 1]), tensor("k", &[2, 2, 3, 3]), tensor("c", &[1, 2, 1, 1])];
    run(
        vec![conv("x", "k", "a"), node("Mul", &["a", "x"], "y", vec![])],
        weights(),
        &["expected their sum"],
    );
    run(
        vec![conv("x", "k", "a"), node("Add", &["a", "x"], "y", vec![])],
        weights(),
        &["[1, 2, 2, 2]", "[1, 2, 4, 4]"],
    );
    run(vec![node("Add", &["x", "x"], "y", vec![])], weights(), &["0 layers", "1 to 255"]);
    let nodes = vec![
        conv("x", "w", "a"),
        node("Add", &["a", "c"], "b", vec![]),
        node("Relu", &["b"], "d", vec![]),
        node("Add", &["d", "a"], "y", vec![]),
    ];
    run(nodes, weights(), &["`a`", "no constants change it"]);
    // Two branches of more than one layer each.
    let nodes = vec![
        conv("x", "w", "a"),
        node("Relu", &["a"], "b", vec![]),
        conv("x", "w", "c2"),
        node("Relu", &["c2"], "d", vec![]),
        node("Add", &["b", "d"], "y", vec![]),
    ];
    run(nodes, weights(), &["not what the layer before gives"]);
}

#[test]
fn every_node_that_is_not_supported_is_listed() {
    let nodes = vec![
        node("Sigmoid", &["x"], "a", vec![]),
        node("Clip", &["a"], "b", vec![]),
        node("Relu", &["b"], "c", vec![]),
        node("LSTM", &["c"], "d", vec![]),
        node("Relu", &["d"], "e", vec![]),
        Node { domain: "com.example".to_owned(), ..node("Fancy", &["e"], "y", vec![]) },
    ];
    let Err(OnnxError::Unsupported(all)) = read(&graph(&[1, 2, 3, 3], nodes, vec![])) else {
        panic!("it is read");
    };
    let names: Vec<_> = all.iter().map(|one| (&one.node[..], &one.operator[..])).collect();
    let expected = [
        ("the Sigmoid", "Sigmoid"),
        ("the Clip", "Clip"),
        ("the LSTM", "LSTM"),
        ("the Fancy", "com.example.Fancy"),
    ];
    assert_eq!(names, expected);
}

#[test]
fn operators_that_are_claimed_are_known() {
    for op in OPERATORS.iter().chain(FOLDED) {
        match read(&graph(&[1, 2, 3, 3], vec![node(op, &["x"], "y", vec![])], vec![])) {
            Err(OnnxError::Unsupported(all)) => {
                assert_ne!(all[0].reason, "no layer computes it", "{op}");
            }
            done => assert!(done.is_ok() || *op == "Shape", "{op}: {done:?}"),
        }
    }
}

/// A small file cannot make weights that no file of its size has.
#[test]
fn weights_cannot_grow_without_a_bound() {
    let chain = |count: usize| {
        let name = |at: usize| match at {
            0 => "x".to_owned(),
            at if at == count => "y".to_owned(),
            at => format!("v{at}"),
        };
        let each = |at| node("MatMul", &[&name(at), "w"], &name(at + 1), vec![]);
        graph(&[1, 100], (0..count).map(each).collect(), vec![tensor("w", &[100, 100])])
    };
    assert!(read(&chain(20)).is_ok());
    refused(&chain(1000), &["the MatMul", "weights in all"]);
    let dilated = node("Conv", &["x", "w"], "y", vec![ints("dilations", &[126, 126])]);
    let one = |filters| {
        graph(&[1, 1, 300, 300], vec![dilated.clone()], vec![tensor("w", &[filters, 1, 3, 3])])
    };
    assert!(read(&one(1)).is_ok());
    refused(&one(1000), &["the Conv", "weights in all"]);
    // A number for billions of channels is one number.
    let scaled = node("Mul", &["x", "one"], "y", vec![]);
    let wide = graph(&[1, 1 << 31], vec![scaled], vec![tensor("one", &[])]);
    assert_eq!(read(&wide).unwrap().model().net.input.shape, Shape::rows(1, 1 << 31));
    refused(&product(Tensor { dims: vec![1; 9], ..tensor("w", &[1]) }), &["`w`", "9 dimensions"]);
    let soft = node(
        "Softmax",
        &["x"],
        "y",
        vec![Attribute { name: "axis".to_owned(), ..Attribute::default() }],
    );
    refused(&graph(&[i64::MAX, 8], vec![soft], vec![]), &["the Softmax", "axis 0"]);
    // Lists that join themselves stay short.
    let mut nodes = vec![node("Shape", &["x"], "s0", vec![])];
    for at in 0..64 {
        let (from, to) = (format!("s{at}"), format!("s{}", at + 1));
        nodes.push(node("Concat", &[&from, &from], &to, vec![]));
    }
    nodes.push(node("Reshape", &["x", "s64"], "y", vec![]));
    refused(&graph(&[1, 2], nodes, vec![]), &["the Concat", "long lists"]);
}

#[test]
fn no_cut_and_no_change_of_a_byte_panics() {
    let bytes = small();
    assert!(read(&bytes).is_ok());
    for end in 0..bytes.len() {
        assert!(read(&bytes[..end]).is_err(), "cut at {end}");
    }
    for at in 0..bytes.len() {
        for change in [0x01, 0x02, 0x10, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            // A changed weight is a net all the same.
            if let Ok(net) = read(&changed) {
                assert!(net.model().net.check().is_ok());
            }
        }
    }
}

proptest! {
    #[test]
    fn bytes_are_a_net_or_an_error(bytes: Vec<u8>) {
        if let Ok(net) = read(&bytes) {
            prop_assert!(net.model().net.check().is_ok());
        }
    }

    /// Convolutions with any padding, stride and dilation: each output is what the definition gives.
    #[test]
    fn uneven_windows_are_what_the_definition_says(
        (h, w) in (1i64..9, 1i64..9),
        (r, s) in (1i64..4, 1i64..4),
        stride in 1i64..4,
        dilation in 1i64..3,
        pads: [u8; 4],
    ) {
        let pads = pads.map(|pad| i64::from(pad % 4));
        let attributes = vec![
            ints("strides", &[stride, stride]),
            ints("dilations", &[dilation, dilation]),
            ints("pads", &pads),
        ];
        let conv = node("Conv", &["x", "w"], "y", attributes);
        let net = read(&graph(&[1, 1, h, w], vec![conv], vec![tensor("w", &[1, 1, r, s])]));
        let places = |size, kernel, before, after| {
            let room = size + before + after - ((kernel - 1) * dilation + 1);
            (room >= 0).then(|| room / stride + 1)
        };
        let sizes = (places(h, r, pads[0], pads[2]), places(w, s, pads[1], pads[3]));
        let (Some(p), Some(q)) = sizes else {
            prop_assert!(net.is_err());
            return Ok(());
        };
        let net = net.unwrap();
        let model = net.model();
        let &[Layer::Conv2d(conv)] = model.net.layers else { panic!("a convolution") };
        let Weights::Flat(weights) = model.weights else { panic!("weights are in memory") };
        let (x, kernel) = (numbers((h * w) as usize), numbers((r * s) as usize));
        let mut y = vec![0.0; (p * q) as usize];
        prop_assert_eq!(model.net.output().unwrap(), Shape::new(1, 1, p as u32, q as u32));
        conv.forward(model.net.input.shape, &x, weights, &[], &mut y);
        for (at, found) in y.iter().enumerate() {
            let (i, j) = (at as i64 / q * stride - pads[0], at as i64 % q * stride - pads[1]);
            let mut expected = 0.0;
            for tap in 0..r * s {
                let (i, j) = (i + tap / s * dilation, j + tap % s * dilation);
                if (0..h).contains(&i) && (0..w).contains(&j) {
                    expected += kernel[tap as usize] * x[(i * w + j) as usize];
                }
            }
            prop_assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
}
