//! A model file in parts, to be changed and put together with right lengths and checksums. Written
//! from the specification alone, without the crate's reader and writer.

/// Bytes of the header.
const HEADER: usize = 32;
/// What the place of the weights is a multiple of.
const BLOB_ALIGN: usize = 256;

/// The parts.
#[derive(Clone, PartialEq, Debug)]
pub struct Parts {
    /// Magic, versions, flags.
    pub head: Vec<u8>,
    /// Each record's kind and payload.
    pub records: Vec<Vec<u8>>,
    /// The weights section.
    pub blob: Vec<u8>,
}

impl Parts {
    /// Takes a file apart; `None` where lengths do not fit.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let word = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(word) as usize)
        };
        let mut manifest = bytes.get(HEADER..)?.get(..word(16)?)?;
        let blob = bytes.get(word(20)?..)?.get(..word(24)?)?.to_vec();
        let mut records = vec![];
        while !manifest.is_empty() {
            let (len, rest) = varint(manifest)?;
            let (record, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            records.push(record.to_vec());
            manifest = rest;
        }
        Some(Self { head: bytes.get(..16)?.to_vec(), records, blob })
    }

    /// The records, each behind its length.
    pub fn manifest(&self) -> Vec<u8> {
        let mut manifest = vec![];
        for record in &self.records {
            put_varint(&mut manifest, record.len() as u64);
            manifest.extend(record);
        }
        manifest
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        assemble(&self.head, &self.manifest(), &self.blob)
    }
}

/// A file of its parts, lengths and checksums as they must be.
pub fn assemble(head: &[u8], manifest: &[u8], blob: &[u8]) -> Vec<u8> {
    let blob_at = (HEADER + manifest.len()).next_multiple_of(BLOB_ALIGN);
    let mut bytes = head.to_vec();
    for word in [manifest.len(), blob_at, blob.len()] {
        bytes.extend((word as u32).to_le_bytes());
    }
    bytes.extend(crc(&[&bytes, manifest]).to_le_bytes());
    bytes.extend(manifest);
    bytes.resize(blob_at, 0);
    bytes.extend(blob);
    bytes.extend(crc(&[blob]).to_le_bytes());
    bytes
}

/// CRC-32 bit by bit, of pieces one after the other.
pub fn crc(parts: &[&[u8]]) -> u32 {
    let mut crc = !0u32;
    for byte in parts.iter().flat_map(|part| part.iter()) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// Adds a number of variable length, seven bits a byte.
pub fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// A number of variable length, and what follows it.
pub fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}
