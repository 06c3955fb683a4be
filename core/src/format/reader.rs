//! Reading a file in place.

use super::checkpoint::Saved;
use super::error::{FormatError, field, within};
use super::record::{Counts, NetRecord, Provenance, Raw, Record, Records, StateRecord, kind};
use super::{ALIGN, BLOB_ALIGN, CHECKPOINT, FLAGS, HEADER, MAGIC, MAJOR, MANIFEST_MAX, TRAILER};
use crate::arena::Dtype;
use crate::checksum::CRC32;
use crate::layer::{Layer, Role};
use crate::net::{Model, Net, TensorRecord, Weights};

/// A model file whose bytes lie in the caller's memory: flash, a mapped or a loaded file.
///
/// ```
/// use sepal_core::format::{Cursor, File, Meta, write};
/// use sepal_core::layer::{Dense, Layer, RELU};
/// use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
/// use sepal_core::shape::Shape;
///
/// let net = Net {
///     input: Input { shape: Shape::rows(1, 2), normalisation: Normalisation::NONE },
///     layers: &[Layer::Dense(Dense { units: 2, bias: false })],
///     blocks: &[1],
///     features: 0,
/// };
/// let model = Model { net, weights: Weights::Flat(&[1.0, 2.0, 3.0, 4.0]) };
/// let mut bytes = [0; 1024];
/// let mut cursor = Cursor::new(&mut bytes);
/// write(&model, &Meta { classes: &["cat", "dog"], ..Meta::NONE }, &mut cursor)?;
///
/// let file = File::open(cursor.written())?;
/// assert_eq!(file.class_name(1), Some("dog"));
/// let (mut layers, mut blocks) = ([RELU; 1], [0; 1]);
/// let mut tensors = [File::NO_TENSOR; 1];
/// let read = file.decode(&mut layers, &mut blocks, &mut tensors)?;
/// assert_eq!(read.net, net);
/// # Ok::<(), sepal_core::format::FormatError>(())
/// ```
#[derive(Clone, Copy)]
pub struct File<'m> {
    minor: u16,
    records: Records<'m>,
    counts: Counts,
    blob: &'m [u8],
    manifest_crc: u32,
    crc: u32,
}

impl core::fmt::Debug for File<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { minor, counts, crc, .. } = self;
        write!(f, "File {{ version: {MAJOR}.{minor}, {counts:?}, crc: {crc:#010x} }}")
    }
}

/// Little-endian numbers of a header, one after the other.
struct Header<'m>(&'m [u8]);

impl Header<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (first, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *first
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
}

impl<'m> File<'m> {
    /// Fills the array that [`decode`](Self::decode) writes tensors into.
    pub const NO_TENSOR: TensorRecord = TensorRecord {
        layer: 0,
        role: Role::Weight,
        dtype: Dtype::F32,
        at: 0,
        len: 0,
        scales_at: 0,
        scales_len: 0,
    };

    /// The length of the file that begins with these bytes, at least 32 of them: for flash that
    /// goes on behind it. [`open`](Self::open) takes exactly this many.
    ///
    /// # Errors
    /// Too few bytes, another magic or major version.
    pub fn length(bytes: &[u8]) -> Result<u64, FormatError> {
        let (_, _, _, blob_at, blob_len) = header(bytes)?;
        Ok(u64::from(blob_at) + u64::from(blob_len) + TRAILER as u64)
    }

    /// Checks the whole file: magic, version, flags, every length, both checksums, the order
    /// and the fields of every record. Reads each byte of the weights once; where that takes too
    /// long at each start, see [`open_trusted`](Self::open_trusted).
    ///
    /// # Errors
    /// The first thing that is wrong. Whatever the bytes are, it does not panic.
    pub fn open(bytes: &'m [u8]) -> Result<Self, FormatError> {
        let file = Self::open_trusted(bytes)?;
        match CRC32.checksum(file.blob) {
            crc if crc == file.crc => Ok(file),
            crc => Err(field("weights checksum", crc.into(), file.crc.into())),
        }
    }

    /// As [`open`](Self::open) without the checksum of the weights: for weights that were
    /// checked when they were written. Weights that changed since give wrong outputs, never a
    /// panic.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_trusted(bytes: &'m [u8]) -> Result<Self, FormatError> {
        let (minor, flags, manifest_len, blob_at, blob_len) = header(bytes)?;
        let expected = Self::length(bytes)?;
        if bytes.len() as u64 != expected {
            return Err(field("file length", bytes.len() as u64, expected));
        }
        let short = field("file length", bytes.len() as u64, HEADER as u64);
        let (head, rest) = bytes.split_at_checked(HEADER).ok_or(short)?;
        // The lengths below were compared with the file's; nothing here is out of range.
        let padding = (blob_at as usize).saturating_sub(HEADER + manifest_len as usize);
        let (manifest, rest) = rest.split_at_checked(manifest_len as usize).ok_or(short)?;
        let (padding, rest) = rest.split_at_checked(padding).ok_or(short)?;
        let (blob, trailer) = rest.split_at_checked(blob_len as usize).ok_or(short)?;

        let (summed, stored) = head.split_last_chunk::<4>().ok_or(short)?;
        let mut digest = CRC32.digest();
        digest.update(summed);
        digest.update(manifest);
        let (crc, stored) = (digest.finalize(), u32::from_le_bytes(*stored));
        if crc != stored {
            return Err(field("manifest checksum", crc.into(), stored.into()));
        }
        if let Some(&byte) = padding.iter().find(|&&byte| byte != 0) {
            return Err(field("padding", byte.into(), 0));
        }
        let records = Records::new(manifest, HEADER as u32);
        let crc = Header(trailer).word();
        let counts = Counts::default();
        let mut file = Self { minor, records, counts, blob, manifest_crc: stored, crc };
        file.counts = file.check_records(flags)?;
        Ok(file)
    }

    /// Every record once: order, number, fields.
    fn check_records(&self, flags: u32) -> Result<Counts, FormatError> {
        let (mut counts, mut seen) = (Counts::default(), Counts::default());
        let (mut nets, mut checkpoints, mut provenances) = (0, 0, 0);
        let (mut last, mut slots) = (0, 0);
        for raw in self.records {
            let raw = raw?;
            if raw.kind < last {
                return Err(field("record kind", raw.kind.into(), last.into()));
            }
            last = raw.kind;
            match raw.decode(self.minor)? {
                Record::Net(net) => {
                    nets += 1;
                    counts = net.counts;
                }
                Record::Layer(_) => seen.layers += 1,
                Record::Tensor(_) => seen.tensors += 1,
                Record::Class(_) => seen.classes += 1,
                Record::Checkpoint(_) => checkpoints += 1,
                Record::State(state) => {
                    if u32::from(state.index) < slots {
                        return Err(field("state index", state.index.into(), slots.into()));
                    }
                    slots = u32::from(state.index) + 1;
                    self.state_bytes(&state)?;
                }
                Record::Provenance(_) => provenances += 1,
                Record::Outcome(_) | Record::Separation(..) | Record::Note(_) | Record::Skipped => {
                }
            }
        }
        let flagged = usize::from(flags & CHECKPOINT != 0);
        for (name, found, expected) in [
            ("net records", nets, 1),
            ("layer records", seen.layers, counts.layers),
            ("tensor records", seen.tensors, counts.tensors),
            ("class records", seen.classes, counts.classes),
            ("checkpoint records", checkpoints, flagged),
        ] {
            if found != expected {
                return Err(field(name, found as u64, expected as u64));
            }
        }
        within("provenance records", provenances, 1)?;
        Ok(counts)
    }

    /// How many layers, tensors, class names and blocks there are: the lengths of the slices
    /// that [`decode`](Self::decode) takes.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Layers.
    pub const fn layers(&self) -> usize {
        self.counts.layers
    }

    /// Stored tensors.
    pub const fn tensors(&self) -> usize {
        self.counts.tensors
    }

    /// Blocks.
    pub const fn blocks(&self) -> usize {
        self.counts.blocks
    }

    /// Class names.
    pub const fn classes(&self) -> usize {
        self.counts.classes
    }

    /// Every record decoded. Those that do not decode were refused by `open`.
    pub(super) fn decoded(&self) -> impl Iterator<Item = Record<'m>> + use<'m> {
        let minor = self.minor;
        self.records.filter_map(move |raw| raw.ok()?.decode(minor).ok())
    }

    /// Every record of one kind, decoded.
    fn of(&self, kind: u8) -> impl Iterator<Item = Record<'m>> + use<'m> {
        let minor = self.minor;
        let own = move |raw: &Raw<'_>| raw.kind == kind;
        self.records.map_while(Result::ok).filter(own).filter_map(move |raw| raw.decode(minor).ok())
    }

    fn net(&self) -> Result<NetRecord<'m>, FormatError> {
        match self.of(kind::NET).next() {
            Some(Record::Net(net)) => Ok(net),
            _ => Err(field("net records", 0, 1)),
        }
    }

    /// Decodes the model into the caller's memory; the slices may be longer than the
    /// [`counts`](Self::counts). Weights stay where they are. Checks the layers against each
    /// other and every tensor against its layer, so that a model that decodes also runs, in an
    /// arena that is large enough.
    ///
    /// # Errors
    /// Slices that are too short, layers that do not fit each other, tensors that are missing,
    /// of another length or type than the layer's, unaligned within the file, or not within it.
    pub fn decode<'a>(
        &self,
        layers: &'a mut [Layer],
        blocks: &'a mut [u16],
        tensors: &'a mut [TensorRecord],
    ) -> Result<Model<'a>, FormatError>
    where
        'm: 'a,
    {
        let record = self.net()?;
        let layers = room("layers", layers, self.counts.layers)?;
        let blocks = room("blocks", blocks, self.counts.blocks)?;
        let tensors = room("tensors", tensors, self.counts.tensors)?;
        record.blocks(blocks)?;
        for (layer, record) in layers.iter_mut().zip(self.of(kind::LAYER)) {
            if let Record::Layer(decoded) = record {
                *layer = decoded;
            }
        }
        for (tensor, record) in tensors.iter_mut().zip(self.of(kind::TENSOR)) {
            if let Record::Tensor(decoded) = record {
                *tensor = decoded;
            }
        }
        let (layers, blocks, tensors) = (&*layers, &*blocks, &*tensors);
        let net = Net { input: record.input, layers, blocks, features: record.features };
        net.check()?;
        net.params(layers.len())?;
        self.check_tensors(&net, tensors)?;
        Ok(Model { net, weights: Weights::File { records: tensors, blob: self.blob } })
    }

    /// Records are those of the layers, in the order of layers and roles, none missing.
    fn check_tensors(&self, net: &Net<'_>, tensors: &[TensorRecord]) -> Result<(), FormatError> {
        let mut rest = tensors.iter();
        let mut shape = net.input.shape;
        for (index, layer) in (0..).zip(net.layers) {
            let lengths = layer.tensors(shape).unwrap_or_default();
            for role in Role::ALL {
                let elements = lengths.len(role);
                if elements == 0 {
                    continue;
                }
                let refuse = |field, found, expected| FormatError::Tensor {
                    layer: index,
                    role,
                    field,
                    found,
                    expected,
                };
                let missing = refuse("number of records", 0, 1);
                let record = rest.next().ok_or(missing)?;
                if (record.layer, record.role) != (index, role) {
                    return Err(missing);
                }
                self.check_tensor(record, elements, refuse)?;
            }
            shape = layer.output(shape).unwrap_or_default();
        }
        match rest.next() {
            None => Ok(()),
            Some(&TensorRecord { layer, role, .. }) => {
                let field = "number of records";
                Err(FormatError::Tensor { layer, role, field, found: 1, expected: 0 })
            }
        }
    }

    fn check_tensor(
        &self,
        record: &TensorRecord,
        elements: u32,
        refuse: impl Fn(&'static str, u64, u64) -> FormatError,
    ) -> Result<(), FormatError> {
        let TensorRecord { role, dtype, at, len, scales_at, scales_len, .. } = *record;
        if role != Role::Weight && dtype != Dtype::F32 {
            return Err(refuse("element type", dtype as u64, Dtype::F32 as u64));
        }
        let expected = u64::from(elements) * dtype.size() as u64;
        if u64::from(len) != expected {
            return Err(refuse("length in bytes", len.into(), expected));
        }
        for (name, at, len) in [("place", at, len), ("place of scales", scales_at, scales_len)] {
            if !(at as usize).is_multiple_of(ALIGN) {
                return Err(refuse(name, at.into(), u64::from(at) / ALIGN as u64 * ALIGN as u64));
            }
            if u64::from(at) + u64::from(len) > self.blob.len() as u64 {
                return Err(refuse(name, u64::from(at) + u64::from(len), self.blob.len() as u64));
            }
        }
        let scales = scales_len / 4;
        let fits = match dtype {
            Dtype::I8 => {
                scales_len.is_multiple_of(4) && scales != 0 && elements.is_multiple_of(scales)
            }
            _ => scales_len == 0,
        };
        if fits { Ok(()) } else { Err(refuse("scales", scales_len.into(), 0)) }
    }

    /// Where the bytes of a state vector lie.
    pub(super) fn state_bytes(&self, state: &StateRecord) -> Result<&'m [u8], FormatError> {
        let (at, len) = (state.at as usize, state.len as usize);
        within("state index", state.index.into(), 3)?;
        if !at.is_multiple_of(ALIGN) || !len.is_multiple_of(4) {
            return Err(field("alignment of state", (at % ALIGN + len % 4) as u64, 0));
        }
        let past = u64::from(state.at) + u64::from(state.len);
        within("end of state", past, self.blob.len() as u64)?;
        Ok(self.blob.get(at..).and_then(|rest| rest.get(..len)).unwrap_or_default())
    }

    /// The name of a class.
    pub fn class_name(&self, index: usize) -> Option<&'m str> {
        self.class_names().nth(index)
    }

    /// The names of all classes.
    pub fn class_names(&self) -> impl Iterator<Item = &'m str> + use<'m> {
        self.of(kind::CLASS).filter_map(|record| match record {
            Record::Class(name) => Some(name),
            _ => None,
        })
    }

    /// Where the model comes from.
    pub fn provenance(&self) -> Option<Provenance<'m>> {
        self.of(kind::PROVENANCE).find_map(|record| match record {
            Record::Provenance(provenance) => Some(provenance),
            _ => None,
        })
    }

    /// The Separation Index that was measured after each block, with the block's number.
    pub fn separation(&self) -> impl Iterator<Item = (u16, f32)> + use<'m> {
        self.of(kind::SEPARATION).filter_map(|record| match record {
            Record::Separation(block, si) => Some((block, si)),
            _ => None,
        })
    }

    /// Free lines of text.
    pub fn notes(&self) -> impl Iterator<Item = &'m str> + use<'m> {
        self.of(kind::NOTE).filter_map(|record| match record {
            Record::Note(note) => Some(note),
            _ => None,
        })
    }

    /// The state of the run, where the file is a checkpoint.
    pub fn checkpoint(&self) -> Option<Saved<'m>> {
        self.of(kind::CHECKPOINT).find_map(|record| match record {
            Record::Checkpoint(record) => Some(Saved::new(*self, record)),
            _ => None,
        })
    }

    /// The weights section, as [`Weights::File`] holds it after [`decode`](Self::decode).
    pub const fn blob(&self) -> &'m [u8] {
        self.blob
    }

    /// Both checksums of the file as one number, that of the weights in the upper half. It tells
    /// models apart: what is stored beside a model, such as a delta in flash, names it by this.
    pub const fn checksum(&self) -> u64 {
        (self.crc as u64) << 32 | self.manifest_crc as u64
    }

    /// The minor version that the file was written in.
    pub const fn minor(&self) -> u16 {
        self.minor
    }
}

/// Minor version, flags, length of the manifest, place and length of the weights.
fn header(bytes: &[u8]) -> Result<(u16, u32, u32, u32, u32), FormatError> {
    if bytes.len() < HEADER {
        return Err(field("file length", bytes.len() as u64, HEADER as u64));
    }
    let mut header = Header(bytes);
    let magic = header.take();
    if magic != MAGIC {
        let (found, expected) = (u64::from_be_bytes(magic), u64::from_be_bytes(MAGIC));
        return Err(field("magic", found, expected));
    }
    let (major, minor, flags) = (header.half(), header.half(), header.word());
    if major != MAJOR {
        return Err(field("major version", major.into(), MAJOR.into()));
    }
    if flags & !FLAGS != 0 {
        return Err(FormatError::Unknown { field: "flags", found: (flags & !FLAGS).into() });
    }
    let (manifest_len, blob_at, blob_len) = (header.word(), header.word(), header.word());
    within("manifest length", manifest_len.into(), MANIFEST_MAX as u64)?;
    let least = (HEADER as u64 + u64::from(manifest_len)).next_multiple_of(BLOB_ALIGN as u64);
    if u64::from(blob_at) < least || !(blob_at as usize).is_multiple_of(BLOB_ALIGN) {
        return Err(field("place of the weights", blob_at.into(), least));
    }
    Ok((minor, flags, manifest_len, blob_at, blob_len))
}

fn room<'a, T>(
    field: &'static str,
    given: &'a mut [T],
    needed: usize,
) -> Result<&'a mut [T], FormatError> {
    let short = FormatError::Memory { field, needed, given: given.len() };
    given.get_mut(..needed).ok_or(short)
}

/// The counts of a file, as a constant: the lengths of the arrays that a firmware decodes into.
/// `None` where the bytes do not begin as a file does; they are not checked further.
///
/// ```
/// use sepal_core::format::counts;
/// assert_eq!(counts(b"no model"), None);
/// ```
pub const fn counts(bytes: &[u8]) -> Option<Counts> {
    let mut i = 0;
    while i < MAGIC.len() {
        if i >= bytes.len() || bytes[i] != MAGIC[i] {
            return None;
        }
        i += 1;
    }
    // The record's length, its kind, then the four counts.
    let mut numbers = [0; 6];
    let (mut at, mut i) = (HEADER, 0);
    while i < numbers.len() {
        let (value, next) = match varint(bytes, at) {
            Some(parsed) => parsed,
            None => return None,
        };
        numbers[i] = value;
        at = next;
        i += 1;
    }
    let [_, first, layers, tensors, classes, blocks] = numbers;
    if first != kind::NET as usize {
        return None;
    }
    Some(Counts { layers, tensors, classes, blocks })
}

const fn varint(bytes: &[u8], mut at: usize) -> Option<(usize, usize)> {
    let (mut value, mut shift) = (0usize, 0);
    while shift < 21 {
        if at >= bytes.len() {
            return None;
        }
        let byte = bytes[at];
        at += 1;
        value |= ((byte & 0x7f) as usize) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
        shift += 7;
    }
    None
}
