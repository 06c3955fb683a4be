//! The model file and the checkpoint.

use sepal::backend::{Backend, Device};
#[cfg(feature = "cpu")]
use sepal::cpu::OnCpu;
use sepal::format::{File, Meta, Provenance, counts, write};
use sepal::infer::Inference;
use sepal::layer::{Layer, RELU};
use sepal::models::cache::Budget;
use sepal::models::data::{Dataset, Samples};
use sepal::models::file::{FileError, Loaded, save_checkpoint};
use sepal::models::fit::{Event, Fit, Watch, Wish};
use sepal::models::recipe;
use sepal::net::{Model, Net};
use sepal::reference::OnReference;
use sepal::stage::Recipe;
use sepal::strategy::ForwardSi;

use super::Random;
use super::file::put;
use super::parts::{Parts, put_varint, varint};

/// The most bytes of an arena, so that a file that asks for more is only planned.
const ARENA: usize = 1 << 20;
/// The most products of a run, so that it ends.
const WORK: u64 = 1 << 20;

/// Reads a model. What opens is told apart from what is damaged; what decodes is written, read
/// and written again to the same bytes, and runs.
pub fn model(bytes: &[u8]) {
    let opened = File::open(bytes);
    // With other weights than were summed it must still not fail.
    let Ok(file) = File::open_trusted(bytes) else {
        assert!(opened.is_err(), "only the checksum of the weights may tell them apart");
        return;
    };
    assert_eq!(File::length(bytes), Ok(bytes.len() as u64));
    assert_eq!(file.class_names().count(), file.classes());
    assert!(counts(bytes).is_none_or(|counts| counts == file.counts()));
    let found = file.counts();
    let (mut layers, mut blocks) = (vec![RELU; found.layers], vec![0; found.blocks]);
    let mut tensors = vec![File::NO_TENSOR; found.tensors];
    let Ok(model) = file.decode(&mut layers, &mut blocks, &mut tensors) else { return };
    let again = written(&model, &file);
    let second = File::open(&again).expect("what was written opens");
    let found = second.counts();
    let (mut layers, mut blocks) = (vec![RELU; found.layers], vec![0; found.blocks]);
    let mut tensors = vec![File::NO_TENSOR; found.tensors];
    let read = second.decode(&mut layers, &mut blocks, &mut tensors).expect("and decodes");
    assert_eq!(written(&read, &second), again, "a model that is written again is another");
    run_everywhere(&model);
}

/// Runs a sample, where that is not too much to ask.
pub(super) fn run_everywhere(model: &Model<'_>) {
    run(&OnReference, model);
    #[cfg(feature = "cpu")]
    run(&OnCpu::new(), model);
}

fn written(model: &Model<'_>, file: &File<'_>) -> Vec<u8> {
    let classes: Vec<&str> = file.class_names().collect();
    let (separation, notes): (Vec<_>, Vec<_>) =
        (file.separation().collect(), file.notes().collect());
    let provenance: Option<Provenance<'_>> = file.provenance();
    let meta = Meta {
        classes: &classes,
        provenance,
        separation: &separation,
        notes: &notes,
        ..Meta::NONE
    };
    let mut bytes = vec![];
    let mut sink = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    write(model, &meta, &mut sink).expect("a model that decodes can be written");
    bytes
}

/// Products of one sample, or something near.
fn work(net: &Net<'_>) -> u64 {
    let mut shape = net.input.shape;
    let mut work: u64 = shape.len().unwrap_or(u32::MAX).into();
    for layer in net.layers {
        let out = layer.output(shape).unwrap_or_default();
        let len = u64::from(out.len().unwrap_or(u32::MAX));
        let window = |(h, w): (u8, u8)| len * (1 + u64::from(h) * u64::from(w));
        let own = match layer {
            Layer::MaxPool(pool) => window(pool.window.kernel),
            Layer::AvgPool(pool) => window(pool.window.kernel),
            Layer::KMaxPool(pool) => len * (1 + u64::from(pool.k)),
            Layer::Project(project) => {
                u64::from(project.dim).saturating_mul(shape.len().unwrap_or(u32::MAX).into())
            }
            _ => len,
        };
        work = work.saturating_add(own).saturating_add(layer.macs(shape));
        shape = out;
    }
    work
}

fn run<D: Device>(device: &D, model: &Model<'_>) {
    let last = model.net.layers.len();
    let planner = device.open(&mut []).expect("a backend without memory");
    let Ok(plan) = Inference::new(&planner, model, (0, last), 1, true) else { return };
    if plan.bytes() > ARENA || work(&model.net) > WORK {
        return;
    }
    let mut words = vec![sepal::arena::Word::NAN; sepal::arena::Word::count(plan.bytes())];
    let mut backend = device.open(&mut words).expect("a backend in memory");
    let mut out = vec![0.0; plan.output()];
    // A type of weights that this backend does not take is an error, as what a layer makes of it.
    let fill = |raw: &mut [u8]| raw.iter_mut().zip(0u32..).for_each(|(raw, i)| *raw = i as u8);
    if backend.prepare(model, 0, last).is_ok() {
        let _ = plan.run(&mut backend, model, 1, fill, &mut out);
    }
}

/// Reads a checkpoint, writes it again, and goes on with its run for some steps.
pub fn checkpoint(bytes: &[u8]) {
    let Ok(loaded) = Loaded::open(&put("run", bytes)) else { return };
    let file = loaded.file().expect("it was opened before");
    let net = loaded.model().net;
    let Some(saved) = file.checkpoint() else {
        let none = loaded.snapshot(net, 0);
        assert!(matches!(none, Err(FileError::NoRun { .. })), "a run out of nothing");
        return;
    };
    assert!(loaded.snapshot(net, !saved.identity()).is_err(), "a run of another identity");
    let Ok(snapshot) = loaded.snapshot(net, saved.identity()) else { return };
    let again = put("again", &[]);
    if save_checkpoint(&again, net, &snapshot, saved.identity(), saved.text()).is_ok() {
        let first = std::fs::read(&again).expect("it was written");
        let read = Loaded::open(&again).expect("what was written opens");
        let read = read.snapshot(net, saved.identity()).expect("and goes on");
        save_checkpoint(&again, net, &read, saved.identity(), saved.text()).expect("twice");
        assert_eq!(std::fs::read(&again).expect("it was written"), first);
    }
    let elements = net.input.shape.len().unwrap_or(u32::MAX);
    if elements > 4096 || work(&net) > WORK / 16 || snapshot.weights.len() > 1 << 16 {
        return;
    }
    let (count, names) = (6, vec!["a".into(), "b".into()]);
    let values = (0..count * elements).map(|i| (i * 37 % 251) as u8).collect();
    let labels = (0..count as u16).map(|i| i % 2).collect();
    let Ok(mut data) = Dataset::new(net.input.shape, Samples::U8(values), labels, names) else {
        return;
    };
    let Ok(mut fit) = Fit::resume(net, 0, snapshot) else { return };
    // It ends, by itself or with an error.
    let _ =
        fit.run(&OnReference, &strategy(), &mut data, &Budget::bytes(1 << 16), &mut StopAfter(6));
}

/// What the runs of the corpus follow, in batches of four.
pub fn strategy() -> ForwardSi<'static> {
    let whole = recipe::forward_si(2, 1);
    ForwardSi {
        block: Recipe { batch: 4, ..whole.block },
        classifier: Recipe { batch: 4, ..whole.classifier },
        ..whole
    }
}

/// Stops after some events.
struct StopAfter(u32);

impl Watch for StopAfter {
    fn event(&mut self, _: &Event<'_>) -> Wish {
        self.0 = self.0.saturating_sub(1);
        if self.0 > 0 { Wish::Go } else { Wish::Stop }
    }
}

/// Numbers that readers forget.
const HOSTILE: [u64; 14] = [
    0,
    1,
    2,
    3,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    u64::MAX,
];

/// Changes a file within its structure, checksums and lengths being right again afterwards; now
/// and then without that.
pub fn mutate(bytes: &mut Vec<u8>, seed: u32, inner: &mut dyn FnMut(&mut Vec<u8>)) {
    let mut random = Random::new(seed);
    let Some(mut parts) = Parts::of(bytes) else { return inner(bytes) };
    let count = parts.records.len();
    if count == 0 || random.below(16) == 0 {
        return inner(bytes);
    }
    let at = random.below(count);
    match random.below(10) {
        0 | 1 => inner(&mut parts.records[at]),
        2 => inner(&mut parts.blob),
        // A number in a record becomes a hostile one: lengths, shapes, places, counts.
        3..=5 => {
            let record = &mut parts.records[at];
            let from = random.below(record.len().max(1));
            if let Some((_, rest)) = record.get(from..).and_then(varint) {
                let rest = rest.to_vec();
                record.truncate(from);
                put_varint(record, HOSTILE[random.below(HOSTILE.len())]);
                record.extend(rest);
            }
        }
        // Layers, and tags, of the future and of the table.
        6 => {
            let tag = match random.below(4) {
                0 => HOSTILE[random.below(HOSTILE.len())],
                _ => random.below(26) as u64,
            };
            if let Some(record) =
                parts.records.iter_mut().filter(|r| r.first() == Some(&2)).nth(random.below(4))
            {
                let fields = record.get(1..).and_then(varint).map(|(_, rest)| rest.to_vec());
                record.truncate(1);
                put_varint(record, tag);
                record.extend(fields.unwrap_or_default());
            }
        }
        7 => {
            let other = random.below(count);
            match random.below(3) {
                0 => parts.records.swap(at, other),
                1 => drop(parts.records.remove(at)),
                _ => parts.records.insert(other, parts.records[at].clone()),
            }
        }
        // A later minor version, with fields and kinds that it may have.
        8 => {
            if let Some(minor) = parts.head.get_mut(10) {
                *minor = random.below(3) as u8;
            }
            match random.below(3) {
                0 => parts.records[at].push(random.below(256) as u8),
                1 => parts.records.push(vec![0x40 | random.below(64) as u8, 1, 2, 3]),
                _ => parts.head[12] ^= 1,
            }
        }
        _ => {
            // Lengths of the header itself, summed as they are.
            *bytes = parts.bytes();
            let (field, value) = (16 + 4 * random.below(3), HOSTILE[random.below(HOSTILE.len())]);
            bytes[field..field + 4].copy_from_slice(&(value as u32).to_le_bytes());
            return;
        }
    }
    *bytes = parts.bytes();
}
