use sepal_core::arena::*;
use sepal_core::backend::*;
use sepal_core::layer::*;
use sepal_core::plan::{self, Chain};
use sepal_core::shape::Shape;
use sepal_core::stage::Objective;
use sepal_cpu::*;

#[repr(C)]
struct Ts {
    s: i64,
    n: i64,
}
unsafe extern "C" {
    fn clock_gettime(id: i32, ts: *mut Ts) -> i32;
}
fn cpu() -> f64 {
    let mut t = Ts { s: 0, n: 0 };
    unsafe { clock_gettime(2, &mut t) };
    t.s as f64 + t.n as f64 * 1e-9
}
fn time(mut f: impl FnMut()) -> f64 {
    f();
    let mut best = f64::INFINITY;
    for _ in 0..25 {
        let t = cpu();
        f();
        best = best.min(cpu() - t);
    }
    best
}

fn chain(name: &str, device: &OnCpu, layers: &[Layer], shape: Shape, layout: Layout) {
    let cpu = device.open(&mut []);
    let chain = Chain::new(layers);
    let params = plan::Params::new(0, chain, shape, 0).unwrap();
    let at = params.bytes();
    let x = Slot { layout, ..Slot::new(at, shape, Dtype::F32) };
    let at = at + Word::round_up(x.bytes());
    let plan = plan_train(&cpu, at, &chain, x, &Objective::Statistics).unwrap();
    let mut memory = words(at + plan.bytes());
    let mut cpu = device.open(&mut memory);
    let block = TrainBlock { chain, params, plan, x, phase: Phase::Train { seed: 1, update: 1 } };
    let numbers: Vec<f32> =
        (0..shape.len().unwrap()).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
    cpu.write(x, Host::F32(&numbers)).unwrap();
    let f = time(|| {
        cpu.forward_block(&block, layers.len()).unwrap();
    }) - if layers.len() > 1 {
        time(|| {
            cpu.forward_block(&block, 1).unwrap();
        })
    } else {
        0.
    };
    let mut walk = block.plan.walk(block.x);
    for at in 0..layers.len() {
        let needs = cpu.needs(&chain, at, walk.x(), Pass::Train).unwrap();
        walk.step(needs).unwrap();
    }
    let dy = walk.dx();
    let n = dy.shape.len().unwrap() as usize;
    let g: Vec<f32> = (0..n).map(|i| ((i * 31) % 97) as f32 / 50.0 - 1.0).collect();
    cpu.write(dy, Host::F32(&g)).unwrap();
    let b = time(|| {
        cpu.backward_block(&block).unwrap();
    });
    let mb = x.bytes() as f64 / 1e6;
    let per = 1e6 / shape.n as f64;
    println!(
        "{name:32} {shape} {mb:6.2} MB fwd {:7.2} us/img bwd {:7.2} us/img | {:6.1} / {:6.1} GB/s of x",
        f * per,
        b * per,
        mb / 1e3 / f,
        mb / 1e3 / b
    );
    let mut walk = block.plan.walk(block.x);
    let mut p = block.params.walk();
    let mut total = (0., 0.);
    for at in 0..layers.len() {
        let needs = cpu.needs(&chain, at, walk.x(), Pass::Train).unwrap();
        let param = Param::Ram(p.step(layers[at].tensors(walk.x().shape).unwrap()).unwrap());
        let place = walk.step(needs).unwrap();
        let call = Call { layer: &layers[at], index: at, place, param, phase: block.phase };
        let f = time(|| cpu.forward(&call).unwrap());
        let b = if at > 0 { time(|| cpu.backward(&call).unwrap()) } else { 0.0 };
        if at > 0 {
            total.0 += f;
        }
        total.1 += b;
        println!("    {:16} fwd {:7.2} bwd {:7.2} us/img", layers[at].name(), f * per, b * per);
    }
    println!("    sum              fwd {:7.2} bwd {:7.2} us/img", total.0 * per, total.1 * per);
}

fn main() {
    let device = OnCpu::with_threads(1).unwrap();
    let norm = Layer::BatchNorm(BatchNorm::new());
    let two = Layer::MaxPool(MaxPool::new(2));
    let keep = Layer::AvgPool(AvgPool::new(1));
    let b = Layout::Nchw8c;
    chain("keep", &device, &[keep], Shape::new(128, 6, 28, 28), b);
    let shape = Shape::new(128, 6, 28, 28);
    chain("lenet1 norm relu pool", &device, &[keep, norm, RELU, two], shape, b);
    chain("lenet1 norm relu pool plain", &device, &[keep, norm, RELU, two], shape, Layout::Nchw);
    chain(
        "lenet2 norm relu pool",
        &device,
        &[keep, norm, RELU, two, Layer::Flatten(Flatten)],
        Shape::new(128, 16, 10, 10),
        b,
    );
    chain("lenet5-1 relu pool", &device, &[keep, RELU, two], Shape::new(128, 6, 24, 24), b);
    chain("vgg1 norm relu pool", &device, &[keep, norm, RELU, two], Shape::new(32, 64, 32, 32), b);
    chain("vgg norm relu", &device, &[keep, norm, RELU], Shape::new(32, 128, 16, 16), b);
    chain("vgg norm relu small", &device, &[keep, norm, RELU], Shape::new(32, 512, 2, 2), b);
    chain(
        "vgg 3x3/2 pool",
        &device,
        &[
            keep,
            norm,
            RELU,
            Layer::MaxPool(MaxPool {
                window: Window { kernel: (3, 3), stride: (2, 2), pad: (1, 1) },
            }),
        ],
        Shape::new(8, 64, 56, 56),
        b,
    );
    chain(
        "dense lenet",
        &device,
        &[
            Layer::Dense(Dense::new(120)),
            RELU,
            Layer::Dense(Dense::new(84)),
            RELU,
            Layer::Dense(Dense::new(10)),
        ],
        Shape::rows(128, 400),
        Layout::Nchw,
    );
    chain(
        "dense lenet batch 8",
        &device,
        &[
            Layer::Dense(Dense::new(120)),
            RELU,
            Layer::Dense(Dense::new(84)),
            RELU,
            Layer::Dense(Dense::new(10)),
        ],
        Shape::rows(8, 400),
        Layout::Nchw,
    );
    chain(
        "dropout",
        &device,
        &[keep, Layer::Dropout(Dropout { rate: 0.5 })],
        Shape::rows(128, 512),
        Layout::Nchw,
    );
    chain(
        "dropout",
        &device,
        &[keep, Layer::Dropout(Dropout { rate: 0.5 })],
        Shape::new(128, 16, 5, 5),
        b,
    );
}
