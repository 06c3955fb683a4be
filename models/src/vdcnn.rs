//! VD-CNN (Conneau, Schwenk, Barrault and Le Cun, "Very deep convolutional networks for text
//! classification", EACL 2017; arXiv 1606.01781): character by character, of depth 9, 17 and 29.
//!
//! Vectors of 16 numbers for the characters, a convolution of 64 filters, then convolutions of 64,
//! 128, 256 and 512 filters, all of size 3 and with batch norm (without scale and shift) and ReLU. A
//! max-pool of 3 that moves by 2 comes between the numbers of filters; 8-max pooling behind the
//! last gives 4,096 features for text of any length; then dense layers of 2048, 2048 and `classes`.
//! Depth counts convolutions, as in table 2 there.
//!
//! Chosen here: the first convolution has a norm and ReLU too (the source's figure 1 draws
//! none), so that each block can be trained alone; features are standardised before the dense
//! layers; there are no shortcuts, which the source calls optional. Karimi et al. (2024) give the
//! embedding of 16 and take the rest from the source. The source's text has 1,024 characters out
//! of 69 tokens; [`ALPHABET`] says what is read here.

use sepal_core::layer::{Embedding, KMaxPool, Layer, MaxPool, Window};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::shape::Shape;

use crate::table::Table;

/// The characters that have a vector of their own, in the order of their tokens, from 1 on: those
/// of Zhang, Zhao and LeCun ("Character-level convolutional networks for text classification",
/// 2015), whose list has the hyphen twice; in place of the second the space, which has a token in
/// Conneau et al.
pub const ALPHABET: &[u8; 70] =
    b"abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+=<>()[]{}\n ";

/// Tokens: one for each character of [`ALPHABET`], and 0 for padding and all others.
pub const TOKENS: u32 = ALPHABET.len() as u32 + 1;

/// Characters that the source reads of a text.
pub const LENGTH: u32 = 1024;

/// The token of each byte.
const TOKEN: [u8; 256] = {
    let mut tokens = [0; 256];
    let mut at = 0;
    while at < ALPHABET.len() {
        tokens[ALPHABET[at] as usize] = at as u8 + 1;
        tokens[ALPHABET[at].to_ascii_uppercase() as usize] = at as u8 + 1;
        at += 1;
    }
    tokens
};

/// Writes the tokens of the first characters of a text; 0 past its end. Capitals read as small
/// letters; a character outside [`ALPHABET`] is one 0, however many bytes it takes.
///
/// ```
/// let mut tokens = [9; 6];
/// sepal_models::vdcnn::encode("Az é\n", &mut tokens);
/// assert_eq!(tokens, [1, 26, 70, 0, 69, 0]);
/// ```
pub fn encode(text: &str, tokens: &mut [u8]) {
    let token = |c: char| u8::try_from(c).map_or(0, |byte| TOKEN[usize::from(byte)]);
    let padding = core::iter::repeat(0);
    let text = text.chars().map(token).chain(padding);
    tokens.iter_mut().zip(text).for_each(|(out, token)| *out = token);
}

/// Filters of each level.
const FILTERS: [u32; 4] = [64, 128, 256, 512];

/// Convolutions of each level, by depth.
const CONVS_9: [u8; 4] = [2, 2, 2, 2];
const CONVS_17: [u8; 4] = [4, 4, 4, 4];
const CONVS_29: [u8; 4] = [10, 10, 4, 4];

/// Text as the source reads it.
const TEXT: Input =
    Input { shape: Shape::new(1, 1, 1, LENGTH), normalisation: Normalisation::BYTES };

/// Halves the length.
const POOL: MaxPool = MaxPool { window: Window { kernel: (1, 3), stride: (1, 2), pad: (0, 1) } };

const fn table<const LAYERS: usize, const BLOCKS: usize>(
    convs: [u8; 4],
    classes: u32,
) -> Table<LAYERS, BLOCKS> {
    let embedding = Layer::Embedding(Embedding { tokens: TOKENS, dim: 16 });
    let mut table = Table::new().layer(embedding).conv(FILTERS[0], (1, 3)).end();
    let mut level = 0;
    while level < convs.len() {
        let mut conv = 1;
        while conv <= convs[level] {
            table = table.conv(FILTERS[level], (1, 3));
            if conv == convs[level] {
                table = table.layer(match level {
                    3 => Layer::KMaxPool(KMaxPool { k: 8 }),
                    _ => Layer::MaxPool(POOL),
                });
            }
            table = table.end();
            conv += 1;
        }
        level += 1;
    }
    table.features().hidden(2048).hidden(2048).classes(classes)
}

/// The layers of depth 9.
///
/// On 1,024 characters 305,143,808 multiply-accumulates for 4 classes.
pub const fn vdcnn9_layers(classes: u32) -> [Layer; 39] {
    table::<39, 12>(CONVS_9, classes).layers()
}

/// The layers of depth 17.
pub const fn vdcnn17_layers(classes: u32) -> [Layer; 63] {
    table::<63, 20>(CONVS_17, classes).layers()
}

/// The layers of depth 29.
pub const fn vdcnn29_layers(classes: u32) -> [Layer; 99] {
    table::<99, 32>(CONVS_29, classes).layers()
}

/// [`vdcnn9_layers`] as a net of nine blocks, two hidden dense layers and a classifier. Text has
/// 57 characters at least: 8 are left behind the third pool.
///
/// ```
/// use sepal_core::net::{Input, Normalisation};
/// use sepal_core::shape::Shape;
/// use sepal_models::vdcnn::{vdcnn9, vdcnn9_layers};
///
/// let layers = vdcnn9_layers(14);
/// let input = Input { shape: Shape::new(1, 1, 1, 500), normalisation: Normalisation::BYTES };
/// let net = vdcnn9(&layers, input);
/// assert_eq!(net.shape(net.features_end())?, Shape::new(1, 512, 1, 8));
/// # Ok::<(), sepal_core::plan::PlanError>(())
/// ```
pub const fn vdcnn9(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 12] = table::<39, 12>(CONVS_9, 1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 9 }
}

/// [`vdcnn17_layers`] as a net of 17 blocks, two hidden dense layers and a classifier.
pub const fn vdcnn17(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 20] = table::<63, 20>(CONVS_17, 1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 17 }
}

/// [`vdcnn29_layers`] as a net of 29 blocks, two hidden dense layers and a classifier.
pub const fn vdcnn29(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 32] = table::<99, 32>(CONVS_29, 1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 29 }
}

/// VD-CNN of depth 9 for the four classes of AG's News.
pub const VDCNN9: Net<'static> = vdcnn9(&vdcnn9_layers(4), TEXT);

/// VD-CNN of depth 17 for the four classes of AG's News.
pub const VDCNN17: Net<'static> = vdcnn17(&vdcnn17_layers(4), TEXT);

/// VD-CNN of depth 29 for the four classes of AG's News.
pub const VDCNN29: Net<'static> = vdcnn29(&vdcnn29_layers(4), TEXT);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::{check_blocks, conv_weights, macs};

    #[test]
    fn depths_are_the_published_ones() {
        for (net, depth, millions) in [(VDCNN9, 9, 2.2), (VDCNN17, 17, 4.3), (VDCNN29, 29, 4.6)] {
            check_blocks(&net, depth);
            // Table 2 of the paper gives 0.59 million more than the convolutions of its figures 1
            // and 2 have, the same at every depth: what they are it does not say.
            let weights = f64::from(conv_weights(&net, net.features_end())) / 1e6;
            assert!((millions - weights - 0.59).abs() <= 0.05, "{depth}: {weights}");
            assert_eq!(net.shape(net.features_end()), Ok(Shape::new(1, 512, 1, 8)));
        }
        // By hand: 3 (16 64 + 2 64 64 + 64 128 + 128 128 + 128 256 + 256 256 + 256 512 + 512 512).
        assert_eq!(conv_weights(&VDCNN9, VDCNN9.features_end()), 1_575_936);
        // Figure 1: fc(4096, 2048), fc(2048, 2048), fc(2048, classes).
        let dense = 4096 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 4 + 4;
        let measured = 2 * (64 * 3 + 2 * (128 + 256 + 512) + 4096);
        assert_eq!(VDCNN9.params(39), Ok(71 * 16 + 1_575_936 + measured + dense));
        assert_eq!(macs(&VDCNN9), 305_143_808);
    }

    #[test]
    fn lengths_halve_between_levels() {
        let lengths: Vec<u32> =
            (0..9).map(|block| VDCNN9.shape(VDCNN9.block(block).unwrap().1).unwrap().w).collect();
        assert_eq!(lengths, [1024, 1024, 512, 512, 256, 256, 128, 128, 8]);
    }

    #[test]
    fn every_character_has_a_token_of_its_own() {
        for (at, &byte) in ALPHABET.iter().enumerate() {
            assert_eq!(usize::from(TOKEN[usize::from(byte)]), at + 1);
        }
        // 26 capitals read as small letters.
        assert_eq!(TOKEN.iter().filter(|token| **token > 0).count(), 70 + 26);
        let mut tokens = [9; 3];
        encode("long text", &mut tokens);
        assert_eq!(tokens, [12, 15, 14]);
        encode("", &mut tokens);
        assert_eq!(tokens, [0; 3]);
    }
}
