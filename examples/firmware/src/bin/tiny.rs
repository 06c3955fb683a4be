//! The nets of MLPerf Tiny in f32 and in bytes, in rows like those of `measure`. Outputs have the bits of the
//! host: in f32 of its reference, in bytes of its integers.
#![no_std]
#![no_main]

use core::hint::black_box;

use cortex_m_rt::entry;
use sepal_core::arena::Word;
use sepal_core::format::{Aligned, Counts, File, counts};
use sepal_core::infer::Inference;
use sepal_core::layer::RELU;
use sepal_core::micro::{Micro, Program, operations};
use sepal_core::net::Weights;
use sepal_firmware::row::{macs, row, same};
use sepal_firmware::{board, println};
use sepal_firmware_model::tiny as made;
use sepal_models::autoencoder::AUTOENCODER;
use sepal_models::ds_cnn::DS_CNN;
use sepal_models::mobilenet::MOBILENET;
use sepal_models::resnet::RESNET8;

/// What the largest row needs.
const WORDS: usize = Word::count(217 * 1024);
/// Outputs of the net that has the most.
const OUTPUTS: usize = 640;

#[entry]
fn main() -> ! {
    static mut MEMORY: [Word; WORDS] = [Word::NAN; WORDS];
    let nets = [ds_cnn, mobilenet, resnet8, autoencoder];
    let done = nets.iter().all(|net| net(MEMORY).is_some());
    board::exit((!done).into())
}

/// A net's rows: made ready at compile time in f32, and from a model file in bytes where it has one.
macro_rules! net {
    ($run:ident, $net:ident, $name:literal $(, $int8:ident)?) => {
        fn $run(memory: &mut [Word]) -> Option<()> {
            const OPERATIONS: usize = operations(&$net, $net.layers.len(), false);
            static PROGRAM: Program<'static, OPERATIONS> = match Program::new($net, false) {
                Ok(program) => program,
                Err(_) => panic!("the layers do not fit each other"),
            };
            #[unsafe(link_section = ".model")]
            static WEIGHTS: Aligned<[u8; made::$run::WEIGHTS.len()]> = Aligned(made::$run::WEIGHTS);
            #[unsafe(link_section = ".samples")]
            static SAMPLE: [u8; made::$run::SAMPLE.len()] = made::$run::SAMPLE;

            let macs = macs(&$net)?;
            let mut outputs = [0.0; OUTPUTS];
            let logits = outputs.get_mut(..made::$run::LOGITS.len() / size_of::<f32>())?;
            let fill = |raw: &mut [u8]| raw.copy_from_slice(black_box(&SAMPLE));

            let weights = bytemuck::try_cast_slice(black_box(&WEIGHTS.0[..])).ok()?;
            row(concat!($name, "-f32"), macs, PROGRAM.bytes(), memory, |words| {
                PROGRAM.run(words, &Weights::Flat(weights), fill, logits).ok()
            })?;
            same(logits, &made::$run::LOGITS)?;
            println!("flash={}-f32 bytes={}", $name, WEIGHTS.0.len());
            $({
                const COUNTS: Counts = match counts(&made::$run::$int8) {
                    Some(counts) => counts,
                    None => panic!("no model"),
                };
                #[unsafe(link_section = ".model")]
                static INT8: Aligned<[u8; made::$run::$int8.len()]> = Aligned(made::$run::$int8);
                let mut layers = [RELU; COUNTS.layers];
                let mut blocks = [0; COUNTS.blocks];
                let mut tensors = [File::NO_TENSOR; COUNTS.tensors];
                let file = File::open(black_box(&INT8.0)).ok()?;
                let int8 = file.decode(&mut layers, &mut blocks, &mut tensors).ok()?;
                let plan = Inference::micro(int8.net, 1, true).ok()?;
                row(concat!($name, "-int8"), macs, plan.bytes(), memory, |words| {
                    plan.run(&mut Micro::<false>::new(words), &int8, 1, fill, logits).ok()
                })?;
                same(logits, &made::$run::LOGITS_INT8)?;
                println!("flash={}-int8 bytes={}", $name, INT8.0.len());
            })?
            Some(())
        }
    };
}

net!(ds_cnn, DS_CNN, "ds-cnn", INT8);
net!(mobilenet, MOBILENET, "mobilenet", INT8);
net!(resnet8, RESNET8, "resnet8");
net!(autoencoder, AUTOENCODER, "autoencoder", INT8);
