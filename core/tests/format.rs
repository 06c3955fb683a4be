//! The model file as its users see it: what comes back, what is refused.
#![cfg(feature = "format")]

#[path = "../../tests/no-std/src/case.rs"]
#[expect(dead_code, reason = "only the source is used")]
mod case;
#[path = "../../tests/fuzz/src/readers/parts.rs"]
mod parts;

use parts::{Parts, assemble};
use proptest::prelude::*;
use sepal_core::arena::{Dtype, Word};
use sepal_core::format::{
    Checkpoint, Counts, Cursor, File, FormatError, HEADER, Meta, Provenance, Storage, TEXT_MAX,
    VERSION, counts, identity, write, write_checkpoint,
};
use sepal_core::infer::Inference;
use sepal_core::layer::{
    BatchNorm, Conv2d, Dense, Flatten, L2Normalise, Layer, MaxPool, RELU, Role, Standardise,
};
use sepal_core::net::{Input, Model, Net, Normalisation, TensorRecord, Weights};
use sepal_core::optim::Rule;
use sepal_core::plan::PlanError;
use sepal_core::reference::Reference;
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::stage::{Cut, Loss, Objective, Outcome, Recipe, Stage, Stop};
use sepal_core::train::{Feed, Progress, Session, StagePlan};

/// A net with every kind of tensor that is still small.
const SMALL: Net<'static> = Net {
    input: Input { shape: Shape::new(1, 1, 4, 4), normalisation: Normalisation::scalar(0.25, 0.5) },
    layers: &[
        Layer::Conv2d(Conv2d::new(2, 3)),
        Layer::BatchNorm(BatchNorm { affine: true, eps: 1e-5, momentum: 0.1 }),
        RELU,
        Layer::MaxPool(MaxPool::new(2)),
        Layer::Flatten(Flatten),
        Layer::Standardise(Standardise),
        Layer::Dense(Dense { units: 3, bias: true }),
    ],
    blocks: &[4, 7],
    features: 1,
};

const META: Meta<'static> = Meta {
    classes: &["cat", "Hündin", ""],
    provenance: Some(Provenance { version: "0.1.0", recipe: "by hand", seed: 7, data: 0xabcd }),
    separation: &[(0, 0.75)],
    notes: &["first", "second"],
    storage: Storage::Kept,
};

fn weights(net: &Net<'_>) -> Vec<f32> {
    let mut weights = vec![0.0; net.params(net.layers.len()).unwrap()];
    assert!(sepal_core::init::weights(net, 3, &mut weights));
    weights
}

fn written(model: &Model<'_>, meta: &Meta<'_>, checkpoint: Option<&Checkpoint<'_>>) -> Vec<u8> {
    let mut bytes = vec![];
    let mut sink = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    match checkpoint {
        Some(checkpoint) => write_checkpoint(model, meta, checkpoint, &mut sink).unwrap(),
        None => write(model, meta, &mut sink).unwrap(),
    }
    bytes
}

fn small() -> Vec<u8> {
    written(&Model { net: SMALL, weights: Weights::Flat(&weights(&SMALL)) }, &META, None)
}

/// Calls `f` with the bytes at an address that is `shift` past a multiple of 256.
fn placed<R>(bytes: &[u8], shift: usize, f: impl FnOnce(&[u8]) -> R) -> R {
    let mut memory = vec![0xaa; bytes.len() + 512];
    let at = memory.as_ptr().align_offset(256) + shift;
    memory[at..at + bytes.len()].copy_from_slice(bytes);
    f(&memory[at..at + bytes.len()])
}

/// Decodes into memory of just the right size.
fn decoded<R>(bytes: &[u8], f: impl FnOnce(&Model<'_>) -> R) -> Result<R, FormatError> {
    let file = File::open(bytes)?;
    let Counts { layers, tensors, blocks, .. } = file.counts();
    let (mut layers, mut blocks) = (vec![RELU; layers], vec![0; blocks]);
    let mut tensors = vec![File::NO_TENSOR; tensors];
    Ok(f(&file.decode(&mut layers, &mut blocks, &mut tensors)?))
}

fn outputs(model: &Model<'_>, raw: &[u8]) -> Vec<f32> {
    let mut words = vec![Word::NAN; 1 << 16];
    let mut backend = Reference::new(&mut words);
    let net = &model.net;
    let plan = Inference::new(&backend, model, (0, net.layers.len()), 1, true).unwrap();
    let mut out = vec![0.0; plan.output()];
    let fill = |to: &mut [u8]| to.iter_mut().zip(raw.iter().cycle()).for_each(|(t, f)| *t = *f);
    plan.run(&mut backend, model, 1, fill, &mut out).unwrap();
    out
}

impl Parts {
    /// The first record of a kind.
    fn record(&mut self, kind: u8) -> &mut Vec<u8> {
        self.records.iter_mut().find(|record| record[0] == kind).unwrap()
    }

    /// With one record's payload replaced by other fields.
    fn with(mut self, index: usize, payload: &impl serde::Serialize) -> Vec<u8> {
        let mut bytes = [0; 256];
        let payload = postcard::to_slice(payload, &mut bytes).unwrap();
        self.records[index].truncate(1);
        self.records[index].extend(&*payload);
        self.bytes()
    }
}

fn refused(bytes: &[u8]) -> FormatError {
    decoded(bytes, |_| ()).unwrap_err()
}

#[test]
fn a_model_comes_back_bit_for_bit() {
    let flat = weights(&SMALL);
    placed(&small(), 0, |bytes| {
        decoded(bytes, |model| {
            assert_eq!(model.net, SMALL);
            assert!(!model.weights.is_narrow());
            let stored: Vec<u32> = (0..SMALL.layers.len())
                .flat_map(|layer| model.weights.layer(&model.net, layer))
                .flat_map(|stored| stored.as_f32().unwrap())
                .map(|w| w.to_bits())
                .collect();
            assert_eq!(stored, flat.iter().map(|w| w.to_bits()).collect::<Vec<_>>());
            assert_eq!(written(model, &META, None), bytes, "a file written again is the same");
            let expected = outputs(&Model { net: SMALL, weights: Weights::Flat(&flat) }, &[7, 90]);
            assert_eq!(outputs(model, &[7, 90]), expected);
        })
        .unwrap();
    });
}

#[test]
fn what_is_said_beside_the_model_comes_back() {
    let bytes = small();
    let file = File::open(&bytes).unwrap();
    assert_eq!(file.class_names().collect::<Vec<_>>(), META.classes);
    assert_eq!((file.class_name(1), file.class_name(3)), (Some("Hündin"), None));
    assert_eq!(file.provenance(), META.provenance);
    assert_eq!(file.separation().collect::<Vec<_>>(), META.separation);
    assert_eq!(file.notes().collect::<Vec<_>>(), META.notes);
    assert!(file.checkpoint().is_none());
    let expected = Counts { layers: 7, tensors: 10, classes: 3, blocks: 2 };
    assert_eq!((file.counts(), counts(&bytes)), (expected, Some(expected)));
    assert_eq!((file.layers(), file.tensors(), file.classes(), file.blocks()), (7, 10, 3, 2));
    assert_eq!(File::length(&bytes[..HEADER]), Ok(bytes.len() as u64));
}

#[test]
fn a_file_without_anything_beside_the_model_reads() {
    let net = Net { layers: &SMALL.layers[2..4], blocks: &[2], ..SMALL };
    let model = Model { net, weights: Weights::Flat(&[]) };
    let bytes = written(&model, &Meta::NONE, None);
    decoded(&bytes, |read| assert_eq!(read.net, net)).unwrap();
    let file = File::open(&bytes).unwrap();
    assert_eq!((file.tensors(), file.classes(), file.provenance()), (0, 0, None));
}

#[test]
fn a_file_at_any_address_gives_the_same_outputs() {
    let bytes = small();
    let run = |bytes: &[u8]| decoded(bytes, |model| outputs(model, &[200, 3, 77])).unwrap();
    let aligned = placed(&bytes, 0, run);
    for shift in [1, 2, 3, 4, 15] {
        placed(&bytes, shift, |bytes| {
            let narrow = decoded(bytes, |model| model.weights.is_narrow()).unwrap();
            assert_eq!(narrow, shift % 4 != 0, "shift {shift}");
            assert_eq!(run(bytes), aligned, "shift {shift}");
        });
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = small();
    for len in 0..bytes.len() {
        assert!(File::open(&bytes[..len]).is_err(), "{len} bytes of {}", bytes.len());
    }
    let mut longer = bytes.clone();
    longer.push(0);
    let expected = bytes.len() as u64;
    let (field, found) = ("file length", expected + 1);
    assert_eq!(refused(&longer), FormatError::Field { field, found, expected });
}

#[test]
fn every_changed_byte_is_refused() {
    let mut bytes = small();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            bytes[at] ^= flip;
            // A later minor version is none of the bytes' faults: the checksum is.
            assert!(File::open(&bytes).is_err(), "byte {at} ^ {flip:#x}");
            bytes[at] ^= flip;
        }
    }
    assert!(File::open(&bytes).is_ok());
}

#[test]
fn trusted_files_are_refused_for_all_but_the_weights_checksum() {
    let bytes = small();
    let blob_at = bytes.len() - 4 - Parts::of(&bytes).unwrap().blob.len();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert_eq!(File::open_trusted(&changed).is_ok(), at >= blob_at, "byte {at}");
    }
}

#[test]
fn versions_and_flags_have_rules() {
    let parts = Parts::of(&small()).unwrap();
    assert_eq!(parts.bytes(), small(), "the parts are the file");
    let with = |at: usize, byte: u8| {
        let mut parts = parts.clone();
        parts.head[at] = byte;
        parts.bytes()
    };
    let (field, expected) = ("major version", 1);
    assert_eq!(refused(&with(8, 2)), FormatError::Field { field, found: 2, expected });
    let field = "flags";
    assert_eq!(refused(&with(12, 2)), FormatError::Unknown { field, found: 2 });
    let (field, expected) = ("checkpoint records", 1);
    assert_eq!(refused(&with(12, 1)), FormatError::Field { field, found: 0, expected });
    assert!(matches!(refused(&with(0, b'x')), FormatError::Field { field: "magic", .. }));
    assert!(decoded(&with(10, 1), |_| ()).is_ok(), "a later minor version");
}

#[test]
fn later_minor_versions_add_optional_things_only() {
    let with_record = |minor: u8, record: &[u8]| {
        let mut parts = Parts::of(&small()).unwrap();
        parts.head[10] = minor;
        let at = parts.records.iter().position(|r| r[0] > record[0]);
        parts.records.insert(at.unwrap_or(parts.records.len()), record.to_vec());
        parts.bytes()
    };
    let (optional, needed) = ([0x7f, 1, 2, 3], [9, 1, 2, 3]);
    assert!(decoded(&with_record(1, &optional), |_| ()).is_ok());
    let field = "record kind";
    assert_eq!(refused(&with_record(0, &optional)), FormatError::Unknown { field, found: 0x7f });
    assert_eq!(refused(&with_record(1, &needed)), FormatError::Unknown { field, found: 9 });

    let mut longer = Parts::of(&small()).unwrap();
    longer.record(4).push(0);
    assert!(matches!(refused(&longer.bytes()), FormatError::Record { kind: 4, .. }));
    longer.head[10] = 1;
    assert!(decoded(&longer.bytes(), |_| ()).is_ok());
}

#[test]
fn records_are_counted_and_in_order() {
    let parts = Parts::of(&small()).unwrap();
    for at in 0..parts.records.len() {
        let kind = parts.records[at][0];
        let mut fewer = parts.clone();
        fewer.records.remove(at);
        // What may be missing is optional.
        assert_eq!(decoded(&fewer.bytes(), |_| ()).is_ok(), kind & 0x40 != 0, "without {at}");
        let mut more = parts.clone();
        more.records.insert(at, parts.records[at].clone());
        let repeats = kind == 0x42 || kind == 0x43;
        assert_eq!(decoded(&more.bytes(), |_| ()).is_ok(), repeats, "{at} twice");
        if at > 0 && parts.records[at - 1][0] != kind {
            let mut swapped = parts.clone();
            swapped.records.swap(at - 1, at);
            let expected = u64::from(kind);
            let found = u64::from(parts.records[at - 1][0]);
            let (field, found, expected) =
                ("record kind", found.min(expected), expected.max(found));
            assert_eq!(refused(&swapped.bytes()), FormatError::Field { field, found, expected });
        }
    }
}

/// The tensor record of the convolution's weights, in the small file.
const FIRST_TENSOR: usize = 8;

#[test]
fn tensors_must_fit_their_layers_and_the_weights() {
    let parts = Parts::of(&small()).unwrap();
    let blob = parts.blob.len() as u32;
    type Record = (u16, u8, u8, u32, u32, u32, u32);
    let good: Record = (0, 0, 0, 0, 72, 0, 0);
    assert_eq!(parts.clone().with(FIRST_TENSOR, &good), small());
    let refuse = |field, found, expected| FormatError::Tensor {
        layer: 0,
        role: Role::Weight,
        field,
        found,
        expected,
    };
    let past = u64::from(blob / 16 * 16) + 72;
    let cases: [(Record, FormatError); 15] = [
        ((1, 0, 0, 0, 72, 0, 0), refuse("number of records", 0, 1)),
        ((0, 1, 0, 0, 72, 0, 0), refuse("number of records", 0, 1)),
        ((0, 4, 0, 0, 72, 0, 0), FormatError::Unknown { field: "role", found: 4 }),
        ((0, 0, 3, 0, 72, 0, 0), FormatError::Unknown { field: "element type", found: 3 }),
        ((0, 0, 0, 0, 68, 0, 0), refuse("length in bytes", 68, 72)),
        ((0, 0, 0, 0, u32::MAX, 0, 0), refuse("length in bytes", u32::MAX.into(), 72)),
        ((0, 0, 0, 8, 72, 0, 0), refuse("place", 8, 0)),
        ((0, 0, 0, blob / 16 * 16, 72, 0, 0), refuse("place", past, blob.into())),
        (
            (0, 0, 0, u32::MAX - 15, 72, 0, 0),
            refuse("place", u64::from(u32::MAX) - 15 + 72, blob.into()),
        ),
        ((0, 0, 0, 0, 72, 0, 4), refuse("scales", 4, 0)),
        ((0, 0, 0, 0, 72, 4, 0), refuse("place of scales", 4, 0)),
        ((0, 0, 2, 0, 18, 0, 0), refuse("scales", 0, 0)),
        ((0, 0, 2, 0, 18, 0, 16), refuse("scales", 16, 0)),
        ((0, 0, 2, 0, 18, 0, 6), refuse("scales", 6, 0)),
        ((0, 0, 2, 0, 18, 16, u32::MAX), refuse("place of scales", (1 << 32) + 15, blob.into())),
    ];
    for (record, error) in cases {
        assert_eq!(refused(&parts.clone().with(FIRST_TENSOR, &record)), error, "{record:?}");
    }
    let narrow_bias = (0u16, 1u8, 2u8, 80u32, 2u32, 0u32, 4u32);
    let wide = FormatError::Tensor {
        layer: 0,
        role: Role::Bias,
        field: "element type",
        found: 2,
        expected: 0,
    };
    assert_eq!(refused(&parts.with(FIRST_TENSOR + 1, &narrow_bias)), wide);
}

#[test]
fn nets_must_fit_together() {
    let parts = Parts::of(&small()).unwrap();
    type Shapes = ([f32; 4], [f32; 4]);
    let scale: Shapes = ([0.25; 4], [0.5; 4]);
    let net = |counts: (u16, u16, u16), blocks: &[u16], features: u16, shape: (u32, u32, u32)| {
        parts.clone().with(0, &(counts, blocks, features, shape, scale))
    };
    let good = ((7, 10, 3), &[4u16, 7][..], 1, (1, 4, 4));
    assert_eq!(net(good.0, good.1, good.2, good.3), small());
    let plan = |bytes: Vec<u8>| match refused(&bytes) {
        FormatError::Net(error) => error,
        other => panic!("{other}"),
    };
    for blocks in [&[][..], &[4], &[7, 4], &[4, 4, 7], &[4, 8], &[0, 7]] {
        assert!(matches!(plan(net(good.0, blocks, 0, good.3)), PlanError::Range { .. }));
    }
    assert!(matches!(plan(net(good.0, good.1, 3, good.3)), PlanError::Range { .. }));
    assert!(matches!(plan(net(good.0, good.1, 1, (1, 2, 4))), PlanError::Shape { layer: 0, .. }));
    assert!(decoded(&net(good.0, good.1, 1, (u32::MAX, u32::MAX, 4)), |_| ()).is_err());
    for (counts, field) in [
        ((8, 10, 3), "layer records"),
        ((7, 11, 3), "tensor records"),
        ((7, 10, 2), "class records"),
        ((u16::MAX, 10, 3), "layer records"),
    ] {
        match refused(&net(counts, good.1, good.2, good.3)) {
            FormatError::Field { field: found, .. } => assert_eq!(found, field),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn memory_of_the_caller_is_checked() {
    let bytes = small();
    let file = File::open(&bytes).unwrap();
    let none = File::NO_TENSOR;
    let decode = |layers: usize, blocks: usize, tensors: usize| {
        let (mut layers, mut blocks) = (vec![RELU; layers], vec![0; blocks]);
        file.decode(&mut layers, &mut blocks, &mut vec![none; tensors]).map(drop)
    };
    let memory = |field, needed, given| Err(FormatError::Memory { field, needed, given });
    assert_eq!(decode(6, 2, 10), memory("layers", 7, 6));
    assert_eq!(decode(7, 1, 10), memory("blocks", 2, 1));
    assert_eq!(decode(7, 2, 9), memory("tensors", 10, 9));
    assert_eq!(decode(9, 5, 20), Ok(()));
}

#[test]
fn what_cannot_be_written_is_said() {
    let flat = weights(&SMALL);
    let model = Model { net: SMALL, weights: Weights::Flat(&flat) };
    let mut room = [0; 256];
    let mut cursor = Cursor::new(&mut room);
    let full = write(&model, &META, &mut cursor);
    assert!(matches!(full, Err(FormatError::Memory { field: "bytes", given: 256, .. })));

    let mut calls = 0;
    let mut broken = |_: &[u8]| {
        calls += 1;
        if calls == 20 { Err(FormatError::Sink { code: -5 }) } else { Ok(()) }
    };
    assert_eq!(write(&model, &META, &mut broken), Err(FormatError::Sink { code: -5 }));
    assert_eq!(calls, 20, "nothing is written after an error");

    let short = Model { net: SMALL, weights: Weights::Flat(&flat[1..]) };
    let mut nowhere = |_: &[u8]| Ok(());
    let missing = write(&short, &META, &mut nowhere);
    assert!(matches!(missing, Err(FormatError::Tensor { layer: 6, role: Role::Bias, .. })));

    let long = "x".repeat(TEXT_MAX + 1);
    let limit = write(&model, &Meta { notes: &[&long], ..META }, &mut nowhere);
    let (field, found) = ("text length", TEXT_MAX as u64 + 1);
    assert_eq!(limit, Err(FormatError::Limit { field, found, limit: TEXT_MAX as u64 }));
    assert_eq!(write(&model, &Meta { notes: &[&long[1..]], ..META }, &mut nowhere), Ok(()));

    let net = Net { blocks: &[4], ..SMALL };
    let unfit = write(&Model { net, ..model }, &META, &mut nowhere);
    assert!(matches!(unfit, Err(FormatError::Net(PlanError::Range { .. }))));
}

/// A dense layer of two units over three inputs, quantised.
#[test]
fn quantised_weights_come_back_with_their_scales() {
    let net = Net {
        input: Input { shape: Shape::rows(1, 3), normalisation: Normalisation::NONE },
        layers: &[Layer::Dense(Dense { units: 2, bias: false })],
        blocks: &[1],
        features: 0,
    };
    let mut blob = vec![1u8, 2, 0xff, 4, 5, 6];
    blob.resize(16, 0);
    blob.extend([0.5f32, 0.25].iter().flat_map(|scale| scale.to_le_bytes()));
    blob.resize(32, 0);
    let records = [TensorRecord {
        dtype: Dtype::I8,
        len: 6,
        scales_at: 16,
        scales_len: 8,
        ..File::NO_TENSOR
    }];
    let model = Model { net, weights: Weights::File { records: &records, blob: &blob } };
    let bytes = written(&model, &Meta::NONE, None);
    decoded(&bytes, |read| {
        let Weights::File { records: read_records, blob: read_blob } = read.weights else {
            panic!("weights of a file")
        };
        assert_eq!((read_records, read_blob), (&records[..], &blob[..]));
        assert_eq!(outputs(read, &[255]), [1.0, 3.75]);
        assert_eq!(written(read, &Meta::NONE, None), bytes);
    })
    .unwrap();
}

#[cfg(feature = "f16")]
#[test]
fn weights_as_f16_are_rounded_once() {
    let flat = weights(&SMALL);
    let model = Model { net: SMALL, weights: Weights::Flat(&flat) };
    let bytes = written(&model, &Meta { storage: Storage::F16, ..META }, None);
    assert!(bytes.len() < small().len());
    decoded(&bytes, |read| {
        for layer in 0..SMALL.layers.len() {
            let pairs = read.weights.layer(&read.net, layer).into_iter();
            let pairs = pairs.zip(model.weights.layer(&SMALL, layer)).zip(Role::ALL);
            for ((narrow, wide), role) in pairs.filter(|((_, wide), _)| !wide.is_empty()) {
                let narrows = role == Role::Weight && (layer == 0 || layer == 6);
                assert_eq!(narrow.dtype == Dtype::F16, narrows, "layer {layer}, {role:?}");
                let mut widened = vec![0.0; narrow.len()];
                assert!(narrow.widen(&mut widened));
                for (read, own) in widened.iter().zip(wide.as_f32().unwrap()) {
                    let once = half::f16::from_f32(*own).to_f32();
                    assert_eq!(*read, if narrows { once } else { *own });
                }
            }
        }
        assert_eq!(written(read, &META, None), bytes, "stored types are kept");
        assert!(outputs(read, &[9, 100]).iter().all(|y| y.is_finite()));
    })
    .unwrap();

    let mut huge = flat.clone();
    huge[0] = 70_000.0;
    let model = Model { net: SMALL, weights: Weights::Flat(&huge) };
    let meta = Meta { storage: Storage::F16, ..META };
    let refused = write(&model, &meta, &mut |_: &[u8]| Ok(()));
    assert!(matches!(refused, Err(FormatError::Tensor { layer: 0, role: Role::Weight, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Bytes of the manifest changed at will, lengths and checksums put right: no panic, and
    /// whatever decodes also runs.
    #[test]
    fn hostile_manifests_are_refused_or_run(
        changes in prop::collection::vec((0usize..40, 0usize..64, any::<u8>(), 0u8..4), 1..6),
        minor in 0u8..2,
        cut in 0usize..400,
    ) {
        let mut parts = Parts::of(&small()).unwrap();
        parts.head[10] = minor;
        for (record, at, byte, how) in changes {
            let records = parts.records.len();
            if records == 0 {
                break;
            }
            let record = &mut parts.records[record % records];
            let at = at % (record.len() + 1);
            match how {
                0 => record.insert(at, byte),
                1 if at < record.len() => drop(record.remove(at)),
                _ => if let Some(old) = record.get_mut(at) { *old = byte },
            }
        }
        let blob = parts.blob.len();
        parts.blob.truncate(blob.saturating_sub(cut / 100 * 16));
        parts.records.retain(|record| !record.is_empty());
        placed(&parts.bytes(), 0, use_it);
    }

    /// The same with lengths of records that are wrong.
    #[test]
    fn hostile_bytes_are_refused_or_run(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let parts = Parts::of(&small()).unwrap();
        let mut manifest = parts.manifest();
        for (at, byte) in changes {
            let at = at.index(manifest.len());
            manifest[at] = byte;
        }
        placed(&assemble(&parts.head, &manifest, &parts.blob), 0, use_it);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        use_it(&bytes);
        let mut behind_magic = small()[..16].to_vec();
        behind_magic.extend(&bytes);
        use_it(&behind_magic);
        counts(&behind_magic);
    }
}

/// Everything that the reader offers; then one pass, where memory suffices.
fn use_it(bytes: &[u8]) {
    let Ok(file) = File::open(bytes) else { return };
    let texts = file.class_names().chain(file.notes());
    assert!(texts.count() >= file.classes());
    let _ = (file.provenance(), file.separation().count(), file.checkpoint());
    let ran = decoded(bytes, |model| {
        let mut words = vec![Word::NAN; 1 << 12];
        let mut backend = Reference::new(&mut words);
        let layers = model.net.layers.len();
        let Ok(plan) = Inference::new(&backend, model, (0, layers), 1, true) else { return };
        let room = plan.bytes() <= Word::BYTES << 12;
        let mut out = vec![0.0; if room { plan.output() } else { 0 }];
        let ran = plan.run(&mut backend, model, 1, |raw: &mut [u8]| raw.fill(9), &mut out);
        assert_eq!(ran.is_ok(), room, "{ran:?}");
    });
    let _ = ran;
}

const BLOCK: Stage<'static> = Stage {
    first: 0,
    last: 4,
    calibrate: true,
    cut: Cut::Whole,
    recipe: Recipe {
        head: &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)],
        objective: Objective::Separation(Loss::Margin { margin: 0.2 }),
        epochs: 2,
        batch: 8,
        micro_batches: 1,
        rule: Rule::adam(),
        rate: 0.01,
        schedule: Schedule::Cosine { warmup: 2 },
        stop: Stop::SiPlateau { patience: 1, min_delta: 0.0 },
    },
};

/// The net of the source's images.
const STRIPES: Net<'static> =
    Net { input: Input { shape: Shape::new(1, 1, 28, 28), ..SMALL.input }, ..SMALL };

fn session(plan: StagePlan) -> Session<'static> {
    Session::new(STRIPES, BLOCK, plan, 7, 0)
}

/// A run that is written down after two steps, read and resumed ends in the same bits.
#[test]
fn a_resumed_run_is_the_run() {
    let flat = weights(&STRIPES);
    let model = Model { net: STRIPES, weights: Weights::Flat(&flat) };
    let plan = StagePlan::reference(&STRIPES, &BLOCK, Feed::BYTES).unwrap();
    let mut words = vec![Word::NAN; plan.bytes() / Word::BYTES];
    let mut backend = Reference::new(&mut words);
    let mut through = session(plan);
    through.load(&mut backend, &model).unwrap();
    for _ in 0..2 {
        through.step(&mut backend, &model, &mut case::Stripes).unwrap();
    }
    through.judge(0.5);

    let state = through.state().map(|slot| {
        let mut host = vec![0.0; slot.elements()];
        if !slot.is_empty() {
            sepal_core::backend::Backend::read(
                &mut backend,
                slot,
                sepal_core::backend::HostMut::F32(&mut host),
            )
            .unwrap();
        }
        host
    });
    let run = identity(&BLOCK, 5, 7);
    let outcomes = [Outcome { updates: 3, held_out: 0.25, ..Outcome::default() }; 2];
    let checkpoint = Checkpoint {
        identity: run,
        text: "stripes",
        progress: *through.progress(),
        outcomes: &outcomes,
        state: [&state[0], &state[1], &state[2], &state[3]],
    };
    let bytes = written(&model, &META, Some(&checkpoint));
    let mut ended = flat.clone();
    let outcome = through.run(&mut backend, &model, &mut case::Stripes, |_| ()).unwrap();
    through.store(&mut backend, &mut ended).unwrap();
    assert_ne!(ended, flat);

    let file = File::open(&bytes).unwrap();
    let saved = file.checkpoint().unwrap();
    assert_eq!((saved.version(), saved.identity(), saved.text()), (VERSION, run, "stripes"));
    assert_eq!(saved.progress(), &checkpoint.progress);
    assert_eq!(saved.outcomes().collect::<Vec<_>>(), outcomes);
    decoded(&bytes, |read| {
        assert_eq!(saved.check(read, &STRIPES, run), Ok(()));
        let field = "run identity (recipe, data, seed)";
        let other = FormatError::Field { field, found: run, expected: run ^ 1 };
        assert_eq!(saved.check(read, &STRIPES, run ^ 1), Err(other));
        let net = Net { features: 2, ..STRIPES };
        let other = saved.check(read, &net, run).unwrap_err();
        assert!(matches!(other, FormatError::Field { field: "net (digest)", .. }));

        let mut words = vec![Word::NAN; plan.bytes() / Word::BYTES];
        let mut backend = Reference::new(&mut words);
        let mut resumed = session(plan);
        resumed.load(&mut backend, read).unwrap();
        saved.restore(&mut resumed, &mut backend).unwrap();
        let resumed_outcome = resumed.run(&mut backend, read, &mut case::Stripes, |_| ()).unwrap();
        let mut resumed_weights = flat.clone();
        resumed.store(&mut backend, &mut resumed_weights).unwrap();
        assert_eq!((resumed_outcome, resumed_weights), (outcome, ended));
    })
    .unwrap();
}

#[test]
fn checkpoints_that_do_not_fit_are_refused() {
    let flat = weights(&SMALL);
    let model = Model { net: SMALL, weights: Weights::Flat(&flat) };
    let vector = [1.0, 2.0, 3.0];
    let checkpoint = Checkpoint {
        identity: 5,
        text: "",
        progress: Progress { best: Some(0.5), ..Progress::default() },
        outcomes: &[],
        state: [&vector, &[], &vector, &[]],
    };
    let bytes = written(&model, &META, Some(&checkpoint));
    placed(&bytes, 0, |bytes| {
        let saved = File::open(bytes).unwrap().checkpoint().unwrap();
        assert_eq!(saved.state(0).as_f32(), Some(&vector[..]));
        assert_eq!(saved.state(2).as_f32(), Some(&vector[..]));
        assert!(saved.state(1).is_empty() && saved.state(3).is_empty());

        let plan = StagePlan::reference(&STRIPES, &BLOCK, Feed::BYTES).unwrap();
        let mut words = vec![Word::ZERO; plan.bytes() / Word::BYTES];
        let mut backend = Reference::new(&mut words);
        let mut other = session(plan);
        assert!(saved.restore(&mut other, &mut backend).is_err(), "a state of another length");
        assert_eq!(other.progress(), session(plan).progress());
    });

    let parts = Parts::of(&bytes).unwrap();
    let state = parts.records.iter().position(|record| record[0] == 7).unwrap();
    let blob = parts.blob.len() as u64;
    let end = (blob as u32).next_multiple_of(16);
    for (record, field) in [
        ((4u8, 0u32, 12u32), "state index"),
        ((2, 0, 12), "state index"),
        ((0, 8, 12), "alignment of state"),
        ((0, 0, 13), "alignment of state"),
        ((0, end, 12), "end of state"),
        ((0, u32::MAX - 15, u32::MAX - 3), "end of state"),
    ] {
        match refused(&parts.clone().with(state, &record)) {
            FormatError::Field { field: found, .. } | FormatError::Limit { field: found, .. } => {
                assert_eq!(found, field, "{record:?}");
            }
            other => panic!("{other}"),
        }
    }

    // Another version of the crate wrote it.
    let mut other = parts.clone();
    let record = other.record(5);
    record[2] ^= 1;
    decoded(&other.bytes(), |read| {
        let bytes = other.bytes();
        let saved = File::open(&bytes).unwrap().checkpoint().unwrap();
        assert_ne!(saved.version(), VERSION);
        let refused = saved.check(read, &SMALL, 5).unwrap_err();
        assert!(matches!(refused, FormatError::Field { field: "crate version (digest)", .. }));
    })
    .unwrap();
}

#[test]
fn the_vector_of_the_specification_is_what_is_written() {
    let net = Net {
        input: Input { shape: Shape::rows(1, 2), normalisation: Normalisation::NONE },
        layers: &[Layer::Dense(Dense { units: 1, bias: false })],
        blocks: &[1],
        features: 0,
    };
    let model = Model { net, weights: Weights::Flat(&[0.5, -1.0]) };
    let bytes = written(&model, &Meta { classes: &["a"], ..Meta::NONE }, None);
    let page = include_str!("../../docs/format.md");
    let block = page.split("```hex\n").nth(1).unwrap().split("```").next().unwrap();
    let mut vector = vec![];
    for line in block.lines() {
        let (at, line) = line.split_once(": ").unwrap();
        // Zeros between lines are left out.
        vector.resize(usize::from_str_radix(at, 16).unwrap(), 0);
        let digits = line.split("  ").next().unwrap().split(' ');
        vector.extend(digits.map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    assert!(vector == bytes, "{}", dump(&bytes));
    assert_eq!(File::open(&bytes).unwrap().checksum(), 0xbd6a_7502_00f1_c967);
}

fn dump(bytes: &[u8]) -> String {
    let lines = bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|&b| b != 0));
    let hex = |line: &[u8]| line.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
    lines.map(|(i, line)| format!("{:04x}: {}\n", i * 16, hex(line))).collect()
}

#[test]
fn errors_name_field_value_and_expectation() {
    let cases = [
        (
            FormatError::Field { field: "major version", found: 2, expected: 1 },
            "major version is 0x2, expected 0x1",
        ),
        (
            FormatError::Unknown { field: "layer tag", found: 18 },
            "layer tag 18 is not known to this reader",
        ),
        (
            FormatError::Memory { field: "layers", needed: 7, given: 6 },
            "memory for 6 layers, 7 are needed",
        ),
        (
            FormatError::Tensor {
                layer: 3,
                role: Role::Bias,
                field: "length in bytes",
                found: 8,
                expected: 12,
            },
            "layer 3, Bias: length in bytes is 8, expected 12",
        ),
    ];
    for (error, text) in cases {
        assert_eq!(error.to_string(), text);
    }
}
