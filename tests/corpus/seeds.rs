//! Small files of every kind, made by the crate's own writers where it has one.

use crate::corpus;
use crate::readers::{self, TARGETS, flash, format};
use sepal::arena::Dtype;
use sepal::format::{Meta, Provenance, Storage, write};
use sepal::layer::{
    Activation, AvgPool, AvgPoolTo, BatchNorm, ChannelStd, Conv2d, Dense, Dropout, Embedding,
    Flatten, GlobalAvgPool, KMaxPool, L2Normalise, Layer, MaxPool, Project, Projection, Quantise,
    RELU, Residual, Role, SpaceToDepth, Standardise,
};
use sepal::models::cache::Budget;
use sepal::models::data::{Dataset, Samples};
use sepal::models::file::save_checkpoint;
use sepal::models::fit::{Event, Fit, Snapshot, Watch, WatchError, Wish};
use sepal::models::{lenet, onnx, safetensors, width};
use sepal::net::{Input, Model, Net, Normalisation, Patch, TensorRecord, Weights};
use sepal::reference::OnReference;
use sepal::shape::Shape;

/// Files of a target, by name.
type Files = Vec<(&'static str, Vec<u8>)>;

#[test]
fn seeds_are_those_of_the_writers() {
    let seeds = [
        ("model", models()),
        ("checkpoint", checkpoints()),
        ("flash", deltas()),
        ("idx", idx()),
        ("cifar", cifar()),
        ("csv", csv()),
        ("text", text()),
        ("npy", npy()),
        ("image", images()),
        ("motion", motion()),
        ("onnx", nets(|model| onnx::write(model).unwrap())),
        ("safetensors", nets(|model| safetensors::write(model).unwrap())),
    ];
    assert_eq!(seeds.each_ref().map(|(name, _)| *name), TARGETS.each_ref().map(|t| t.name));
    for (target, files) in seeds {
        for (name, bytes) in files {
            let path = corpus(target).join(format!("seed-{name}"));
            if std::env::var_os("SEPAL_BLESS").is_some() {
                std::fs::write(&path, &bytes).unwrap();
            }
            let kept = std::fs::read(&path).unwrap_or_default();
            // An encoder of images may pack them in another way one day.
            assert!(kept == bytes || target == "image", "{} differs", path.display());
        }
    }
}

fn input(shape: Shape) -> Input {
    Input { shape, normalisation: Normalisation::scalar(0.5, 0.25) }
}

fn written(model: &Model<'_>, meta: &Meta<'_>) -> Vec<u8> {
    let mut bytes = vec![];
    let mut sink = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    write(model, meta, &mut sink).unwrap();
    bytes
}

fn drawn(net: &Net<'_>) -> Vec<f32> {
    let mut weights = vec![0.0; net.params(net.layers.len()).unwrap()];
    assert!(sepal::init::weights(net, 3, &mut weights));
    weights
}

/// Between them every layer, every type of weights, and every record.
fn models() -> Files {
    let images = [
        Layer::Conv2d(Conv2d::new(4, 3)),
        Layer::BatchNorm(BatchNorm::new()),
        Layer::Activation(Activation::LeakyRelu { slope: 0.1 }),
        Layer::MaxPool(MaxPool::new(2)),
        Layer::Conv2d(Conv2d { groups: 2, pad: (1, 1), bias: false, ..Conv2d::new(4, 3) }),
        Layer::Activation(Activation::Relu6),
        Layer::AvgPoolTo(AvgPoolTo { h: 2, w: 2 }),
        Layer::Flatten(Flatten),
        Layer::Standardise(Standardise),
        Layer::Dropout(Dropout { rate: 0.5 }),
        Layer::Dense(Dense { units: 3, bias: true }),
    ];
    let readouts = [
        Layer::SpaceToDepth(SpaceToDepth { factor: 2 }),
        Layer::AvgPool(AvgPool::new(2)),
        RELU,
        Layer::ChannelStd(ChannelStd),
        Layer::Project(Project { dim: 5, seed: 9 }),
        Layer::L2Normalise(L2Normalise),
        Layer::Dense(Dense { units: 2, bias: false }),
    ];
    let texts = [
        Layer::Embedding(Embedding { tokens: 256, dim: 2 }),
        Layer::Conv2d(Conv2d { kernel: (1, 3), pad: (0, 1), ..Conv2d::new(3, 3) }),
        Layer::Activation(Activation::Tanh),
        Layer::KMaxPool(KMaxPool { k: 4 }),
        Layer::GlobalAvgPool(GlobalAvgPool),
    ];
    let bytes = [
        Layer::Quantise(Quantise { scale: 0.1, zero: 3 }),
        Layer::Dense(Dense { units: 3, bias: true }),
    ];
    let image = Net {
        input: input(Shape::new(1, 1, 8, 8)),
        layers: &images,
        blocks: &[4, 7, 11],
        features: 2,
    };
    let readout =
        Net { input: input(Shape::new(1, 2, 8, 8)), layers: &readouts, blocks: &[7], features: 0 };
    let text =
        Net { input: input(Shape::new(1, 1, 1, 16)), layers: &texts, blocks: &[2, 5], features: 1 };
    let narrow = Net { input: input(Shape::rows(1, 2)), layers: &bytes, blocks: &[2], features: 0 };
    let sums = [
        Layer::Conv2d(Conv2d { pad: (1, 1), ..Conv2d::new(2, 3) }),
        RELU,
        Layer::Residual(Residual::new(2)),
        Layer::Conv2d(Conv2d { stride: (2, 2), pad: (1, 1), ..Conv2d::new(3, 3) }),
        RELU,
        Layer::Residual(Residual {
            back: 2,
            project: Some(Projection { channels: 2, stride: (2, 2) }),
        }),
    ];
    let residual =
        Net { input: input(Shape::new(1, 2, 5, 5)), layers: &sums, blocks: &[3, 6], features: 1 };
    let weight = TensorRecord {
        layer: 1,
        role: Role::Weight,
        dtype: Dtype::I8,
        at: 0,
        len: 6,
        scales_at: 16,
        scales_len: 12,
    };
    let bias = TensorRecord {
        role: Role::Bias,
        dtype: Dtype::F32,
        at: 32,
        len: 12,
        scales_at: 0,
        scales_len: 0,
        ..weight
    };
    let mut blob = vec![1, 2, 3, 0xff, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for number in [0.5f32, 0.25, 0.125, 0.0, 1.0, -1.0, 2.0, 0.0] {
        blob.extend(number.to_le_bytes());
    }
    let meta = Meta {
        classes: &["cat", "Hündin", ""],
        provenance: Some(Provenance { version: "0.1.0", recipe: "by hand", seed: 7, data: 0xabcd }),
        separation: &[(0, 0.75), (1, 1.0)],
        notes: &["first", "second"],
        storage: Storage::Kept,
    };
    let flat = |net: Net<'_>, meta: &Meta<'_>| {
        let weights = drawn(&net);
        written(&Model { net, weights: Weights::Flat(&weights) }, meta)
    };
    let records = [weight, bias];
    let weights = Weights::File { records: &records, blob: &blob };
    vec![
        ("image", flat(image, &meta)),
        ("f16", flat(image, &Meta { storage: Storage::F16, ..Meta::NONE })),
        ("readout", flat(readout, &Meta::NONE)),
        ("residual", flat(residual, &Meta::NONE)),
        ("text", flat(text, &Meta { notes: &[""], ..Meta::NONE })),
        ("bytes", written(&Model { net: narrow, weights }, &Meta::NONE)),
    ]
}

/// Takes every snapshot of a run.
struct All(Vec<Snapshot>);

impl Watch for All {
    fn event(&mut self, _: &Event<'_>) -> Wish {
        Wish::Snapshot
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), WatchError> {
        self.0.push(snapshot.clone());
        Ok(())
    }
}

fn checkpoints() -> Files {
    let layers = [
        Layer::Conv2d(Conv2d::new(2, 3)),
        Layer::BatchNorm(BatchNorm::new()),
        RELU,
        Layer::Flatten(Flatten),
        Layer::Dense(Dense { units: 2, bias: true }),
    ];
    let net =
        Net { input: input(Shape::new(1, 1, 4, 4)), layers: &layers, blocks: &[3, 5], features: 1 };
    let values = (0..16 * 8).map(|i| (i * 37 % 251) as u8).collect();
    let labels = (0..8).map(|i| i % 2).collect();
    let names = vec!["a".into(), "b".into()];
    let mut data = Dataset::new(net.input.shape, Samples::U8(values), labels, names).unwrap();
    let mut watch = All(vec![]);
    let mut fit = Fit::new(net, 0).unwrap();
    let budget = Budget::bytes(1 << 16);
    fit.run(&OnReference, &format::strategy(), &mut data, &budget, &mut watch).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let save = |name, snapshot: &Snapshot| {
        save_checkpoint(&path, net, snapshot, 42, "a run").unwrap();
        (name, std::fs::read(&path).unwrap())
    };
    let between = watch.0.iter().find(|s| s.underway.is_none()).expect("stages that are over");
    let last = watch.0.iter().rfind(|s| s.underway.is_some()).expect("a stage under way");
    vec![save("begun", &watch.0[0]), save("between", between), save("last", last)]
}

fn deltas() -> Files {
    let one = Patch { first: 0, last: 2, numbers: &[1.0, -2.0, 3.5] };
    let two = Patch { first: 4, last: 5, numbers: &[0.25] };
    vec![
        ("empty", vec![0xff; 512]),
        ("one", flash::saved(&[&[one]])),
        ("both", flash::saved(&[&[one], &[one, two]])),
        ("third", flash::saved(&[&[one], &[two], &[one, two]])),
    ]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    // Stored, as it is: a header, one block, the checksum and the length.
    let len = bytes.len() as u16;
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    packed.extend(len.to_le_bytes());
    packed.extend((!len).to_le_bytes());
    packed.extend(bytes);
    packed.extend(readers::parts::crc(&[bytes]).to_le_bytes());
    packed.extend(u32::from(len).to_le_bytes());
    packed
}

fn idx() -> Files {
    let file = |dims: &[u32], data: &[u8]| {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|dim| bytes.extend(dim.to_be_bytes()));
        bytes.extend(data);
        bytes
    };
    let images = file(&[2, 2, 3], &[0, 1, 2, 3, 4, 5, 250, 251, 252, 253, 254, 255]);
    vec![
        ("packed", gzip(&images)),
        ("images", images),
        ("labels", file(&[4], &[0, 1, 2, 0])),
        ("rows", file(&[2, 3], &[1; 6])),
        ("colour", file(&[1, 3, 1, 2], &[9; 6])),
    ]
}

fn cifar() -> Files {
    let record = |labels: &[u8]| [labels, &[7; 3072]].concat();
    vec![
        ("ten", record(&[3])),
        ("hundred", record(&[4, 88])),
        ("two", [record(&[0]), record(&[9])].concat()),
        ("packed", gzip(&record(&[1]))),
    ]
}

fn csv() -> Files {
    [
        ("named", "x,w,y\n1,2,a\n3,-4.5e-1,b\n"),
        ("bare", "1,2,3,4,0\n5,6,7,8,1\n"),
        ("quoted", "\"a,b\";\"c\"\"d\";y\r\n1;2;0.5\r\n\r\n3;4;-1\r\n"),
        ("front", "a,1,2\n0, 3 ,4\n"),
    ]
    .map(|(name, text)| (name, text.as_bytes().to_vec()))
    .into()
}

fn text() -> Files {
    [
        ("rows", "\"1\",\"Title\",\"Some \"\"text\"\" of it\"\n\"2\",\"Other\\n\",\"\"\n"),
        ("long", "1,a text that is longer than thirty-two characters, by far\n"),
        ("names", "World\nSports\nBusiness\n"),
    ]
    .map(|(name, text)| (name, text.as_bytes().to_vec()))
    .into()
}

fn npy() -> Files {
    let file = |descr: &str, shape: &str, data: &[u8]| {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\0".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        [&bytes, header.as_bytes(), data].concat()
    };
    let floats: Vec<u8> = [0.5f32, 1.0, -2.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let doubles: Vec<u8> = [0.0f64, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let longs: Vec<u8> = [2i64, 0, 1].iter().flat_map(|x| x.to_le_bytes()).collect();
    vec![
        ("bytes", file("|u1", "(2, 2, 3)", &[3; 12])),
        ("floats", file("<f4", "(2, 2)", &floats)),
        ("doubles", file("<f8", "(2,)", &doubles)),
        ("longs", file("<i8", "(3, 1)", &longs)),
        ("ints", gzip(&file("<i4", "()", &[1, 0, 0, 0]))),
    ]
}

fn images() -> Files {
    let pixels: Vec<u8> = (0..48).map(|i| i * 5).collect();
    let encode = |color, format| {
        let mut bytes = std::io::Cursor::new(vec![]);
        let (w, h) = if color == image::ExtendedColorType::L8 { (6, 8) } else { (4, 4) };
        image::write_buffer_with_format(&mut bytes, &pixels, w, h, color, format).unwrap();
        bytes.into_inner()
    };
    use image::{ExtendedColorType::*, ImageFormat::*};
    vec![
        ("grey.png", encode(L8, Png)),
        ("colour.png", encode(Rgb8, Png)),
        ("grey.jpeg", encode(L8, Jpeg)),
        ("colour.jpeg", encode(Rgb8, Jpeg)),
    ]
}

/// Two persons with a recording each, and one more of nobody.
fn motion() -> Files {
    let recording = |label: &str, person: &str| -> String {
        (0..40).map(|t| format!("{label},{person},0,{t},{}.5,-{t},1e1\n", t % 7)).collect()
    };
    let table = "label,person,recording,t,x,y,z\n".to_owned();
    let two = table.clone() + &recording("ring", "ann") + &recording("wing", "bob");
    let three = two.clone() + &recording("ring", "bob") + &recording("wing", "ann");
    vec![("two", two.into()), ("four", three.into()), ("none", table.into())]
}

/// A net of the interchange formats, a tenth of LeNet's width.
fn nets(written: impl Fn(&Model<'_>) -> Vec<u8>) -> Files {
    let layers = width::scaled(lenet::lenet_layers(10), 10);
    let net = Net { layers: &layers, ..lenet::LENET };
    let weights = drawn(&net);
    vec![("lenet", written(&Model { net, weights: Weights::Flat(&weights) }))]
}
