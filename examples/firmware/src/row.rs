//! What a computation takes, as a line.

use sepal_core::arena::Word;
use sepal_core::net::Net;

use crate::{board, println};

/// Multiply-accumulates of one sample.
pub fn macs(net: &Net<'_>) -> Option<u64> {
    macs_of(net, 0, net.layers.len())
}

/// Those of layers `first..last`.
pub fn macs_of(net: &Net<'_>, first: usize, last: usize) -> Option<u64> {
    let layers = net.layers.iter().enumerate().take(last).skip(first);
    layers.map(|(at, layer)| Some(layer.macs(net.shape(at).ok()?))).sum()
}

/// Runs something in the first `bytes` of the memory, and prints what it took.
pub fn row(
    name: &str,
    macs: u64,
    bytes: usize,
    memory: &mut [Word],
    run: impl FnOnce(&mut [Word]) -> Option<()>,
) -> Option<()> {
    memory.fill(Word::NAN);
    let words = memory.get_mut(..Word::count(bytes))?;
    let (mut instructions, mut done) = (0, None);
    let stack = board::stack_of(|| {
        board::start_timer();
        done = run(words);
        instructions = board::instructions();
    });
    done?;
    let hundredths = (instructions * 100).checked_div(macs).unwrap_or(0);
    let written = words.iter().rposition(|word| bytemuck::bytes_of(word) != [0xff; Word::BYTES]);
    let arena = written.map_or(0, |last| (last + 1) * Word::BYTES);
    println!(
        "row={name} instructions={instructions} macs={macs} per_mac={}.{:02} stack={stack} arena={arena}",
        hundredths / 100,
        hundredths % 100
    );
    Some(())
}

/// Whether the logits are the host's, bit by bit.
pub fn same(logits: &[f32], host: &[u8]) -> Option<()> {
    let same = logits.iter().flat_map(|logit| logit.to_le_bytes()).eq(host.iter().copied());
    same.then_some(())
}
