//! Attributes of a node, and the geometry of windows that they describe.

use sepal_core::layer::Window;

use super::proto::{Attribute, Node};

/// A node's name, or that of its first output where it has none.
pub(super) fn name(node: &Node) -> &str {
    match node.name.as_str() {
        "" => node.output.first().map_or("", String::as_str),
        name => name,
    }
}

fn find<'a>(node: &'a Node, name: &str) -> Option<&'a Attribute> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

pub(super) fn int(node: &Node, name: &str) -> Option<i64> {
    find(node, name).map(|attribute| attribute.i)
}

pub(super) fn float(node: &Node, name: &str) -> Option<f32> {
    find(node, name).map(|attribute| attribute.f)
}

pub(super) fn ints<'a>(node: &'a Node, name: &str) -> Option<&'a [i64]> {
    find(node, name).map(|attribute| &attribute.ints[..])
}

/// The constant that a node of `Constant` gives: one attribute, whichever it is.
pub(super) fn only(node: &Node) -> Option<&Attribute> {
    node.attribute.first().filter(|_| node.attribute.len() == 1)
}

/// How a window lies along one axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    size: u64,
    kernel: u64,
    stride: u64,
    dilation: u64,
    before: u64,
    after: u64,
}

/// A kernel along one axis as core has it: taps `lead + r * dilation` of `kernel` places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taps {
    pub(super) kernel: u8,
    pub(super) stride: u8,
    pub(super) pad: u8,
    pub(super) lead: usize,
    pub(super) dilation: usize,
}

/// The axes of a plane, rows and columns; a signal is a plane of one row.
pub(super) fn axes(node: &Node, dims: &[usize], kernel: &[i64]) -> Result<[Axis; 2], String> {
    let sizes = dims.get(2..).unwrap_or_default();
    let count = sizes.len();
    if !(1..=2).contains(&count) {
        return Err(format!("windows over {count} dimensions, expected 1 or 2"));
    }
    let list = |name: &str, length: usize, default: i64, least: i64| {
        let found = match ints(node, name) {
            Some(given) if !given.is_empty() => given.to_vec(),
            _ => vec![default; length],
        };
        check(name, &found, length, least)
    };
    let kernel = check("kernel", kernel, count, 1)?;
    let (strides, dilations) = (list("strides", count, 1, 1)?, list("dilations", count, 1, 1)?);
    let pads = list("pads", 2 * count, 0, 0)?;
    let (before, after) = pads.split_at(count);
    let auto = find(node, "auto_pad").map_or(&b"NOTSET"[..], |attribute| &attribute.s);
    let mut axes = [Axis { size: 1, kernel: 1, stride: 1, dilation: 1, before: 0, after: 0 }; 2];
    let zipped = sizes.iter().zip(kernel).zip(strides.into_iter().zip(dilations));
    let all = zipped.zip(before.iter().zip(after));
    for (axis, (((&size, kernel), (stride, dilation)), (&before, &after))) in
        axes.iter_mut().skip(2 - count).zip(all)
    {
        let size = size as u64;
        *axis = Axis { size, kernel, stride, dilation, before, after };
        let reach = (kernel - 1) * dilation + 1;
        let same = ((size.div_ceil(stride).max(1) - 1) * stride + reach).saturating_sub(size);
        (axis.before, axis.after) = match auto {
            b"NOTSET" | b"" => (before, after),
            b"VALID" => (0, 0),
            b"SAME_UPPER" => (same / 2, same - same / 2),
            b"SAME_LOWER" => (same - same / 2, same / 2),
            other => return Err(format!("auto_pad `{}`", String::from_utf8_lossy(other))),
        };
    }
    Ok(axes)
}

/// Small numbers, as many as there should be.
fn check(name: &str, found: &[i64], length: usize, least: i64) -> Result<Vec<u64>, String> {
    if found.len() != length {
        return Err(format!("{name} {found:?}, expected {length} numbers"));
    }
    let small = |&n: &i64| if (least..=255).contains(&n) { Some(n as u64) } else { None };
    let numbers: Option<Vec<u64>> = found.iter().map(small).collect();
    numbers.ok_or_else(|| format!("{name} {found:?}, expected numbers of {least} to 255"))
}

impl Axis {
    fn reach(self) -> u64 {
        (self.kernel - 1) * self.dilation + 1
    }

    /// As a kernel with the same padding on both sides: zeros fill what it does not read.
    ///
    /// With padding a before and b after, a kernel that is longer by `|b - a|` reads the same
    /// places and gives as many outputs: its new taps, zeros, lie in front where `b > a`.
    pub(super) fn taps(self) -> Result<Taps, String> {
        let Self { size, stride, dilation, before, after, .. } = self;
        let reach = self.reach();
        // Longer only where it matters.
        let (lead, kernel, pad) = match self.places(after, false) {
            places if places == self.places(before, false) => (0, reach, before),
            _ => (after.saturating_sub(before), reach + before.abs_diff(after), before.max(after)),
        };
        let small = |n: u64| u8::try_from(n);
        match (small(kernel), small(stride), small(pad)) {
            (Ok(kernel), Ok(stride), Ok(pad)) => {
                let (lead, dilation) = (lead as usize, dilation as usize);
                Ok(Taps { kernel, stride, pad, lead, dilation })
            }
            _ => Err(format!("a kernel of {kernel} places over {size}, expected at most 255")),
        }
    }

    /// How many positions there are with padding `after`; none where the kernel is too long.
    fn places(self, after: u64, ceil: bool) -> u64 {
        let padded = self.size.saturating_add(self.before + after);
        let Some(room) = padded.checked_sub(self.reach()) else { return 0 };
        if !ceil {
            return room / self.stride + 1;
        }
        let places = room.div_ceil(self.stride) + 1;
        // The last one begins inside, or in the padding before.
        if (places - 1) * self.stride >= self.size.saturating_add(self.before) {
            return places - 1;
        }
        places
    }
}

/// The window of a pool, whose padding is the same on both sides.
pub(super) fn window(node: &Node, axes: [Axis; 2]) -> Result<Window, String> {
    let ceil = int(node, "ceil_mode").unwrap_or(0) != 0;
    for axis in axes {
        if axis.dilation != 1 {
            return Err(format!("dilation {}, expected 1", axis.dilation));
        }
        let (found, expected) = (axis.places(axis.after, ceil), axis.places(axis.before, false));
        if found != expected {
            let Axis { before, after, .. } = axis;
            let round = if ceil { ", rounded up" } else { "" };
            let of = format!("{expected} as {before} on both sides give");
            let pads = format!("padding of {before} before and {after} after{round}");
            return Err(format!("{pads}: {found} outputs, expected {of}"));
        }
    }
    let [rows, columns] = axes;
    let pair = |of: fn(Axis) -> u64| match (u8::try_from(of(rows)), u8::try_from(of(columns))) {
        (Ok(rows), Ok(columns)) => Ok((rows, columns)),
        _ => Err(format!("{} by {} places, expected at most 255", of(rows), of(columns))),
    };
    Ok(Window {
        kernel: pair(|axis| axis.kernel)?,
        stride: pair(|axis| axis.stride)?,
        pad: pair(|axis| axis.before)?,
    })
}
