//! The order of samples that a command line names.

use std::path::Path;

/// Reads an order: little-endian u16 indices into a training set of `len` images.
pub fn order(path: &Path, len: u32) -> Result<Vec<u32>, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let (indices, rest) = bytes.as_chunks::<2>();
    let name = path.display();
    if !rest.is_empty() || indices.is_empty() {
        return Err(format!("{name}: {} bytes, expected u16 indices of 2 bytes each", bytes.len()));
    }
    let indices: Vec<u32> = indices.iter().map(|&i| u16::from_le_bytes(i).into()).collect();
    match indices.iter().position(|&index| index >= len) {
        Some(at) => {
            Err(format!("{name}: index {} at place {at}, expected 0 to {}", indices[at], len - 1))
        }
        None => Ok(indices),
    }
}
