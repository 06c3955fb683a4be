//! Planted faults: kernels of the CUDA backend, and some by hand, are broken one line at a time, and
//! each is caught by what it breaks.

use sepal_stand_in::{Fault, Launch, Memory, Module, run};

/// The built-in kernels of the search, and of the normalisations.
const SEARCH: &str = include_str!("../../../cuda/kernels/ptx/search.80.ptx");
const NORM: &str = include_str!("../../../cuda/kernels/ptx/norm.80.ptx");

/// Replaces the occurrence `at` of a text, which must be there.
#[track_caller]
fn broken(ptx: &str, from: &str, to: &str, at: usize) -> String {
    let (start, _) = ptx.match_indices(from).nth(at).expect("the text is there");
    [&ptx[..start], to, &ptx[start + from.len()..]].concat()
}

/// The part of a module from a kernel on, so that a change is made within it.
fn from_kernel(ptx: &str, name: &str) -> String {
    let head = &ptx[..ptx.find(".visible .entry").expect("there is a kernel")];
    let start = ptx.find(&format!(".entry {name}(")).expect("the kernel is there");
    let body = &ptx[start..];
    let end = body.find("\n}").expect("the kernel ends") + 2;
    format!("{head}\n.visible {}\n", &body[..end])
}

/// Leaves the statement at a place to the first seven threads.
fn only_for_few(ptx: &str, at: usize) -> String {
    let end = at + ptx[at..].find(';').expect("a statement ends") + 1;
    format!(
        "{}{{ .reg .b32 lane; .reg .pred few; mov.u32 lane, %tid.x; setp.lt.u32 few, lane, 7;
        @few {} }}{}",
        &ptx[..at],
        &ptx[at..end],
        &ptx[end..]
    )
}

struct Bench {
    memory: Memory,
    params: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        Self { memory: Memory::default(), params: Vec::new() }
    }

    /// A parameter of 4 or 8 bytes, where the kernel expects it.
    fn param(&mut self, bytes: &[u8]) {
        let at = self.params.len().next_multiple_of(bytes.len());
        self.params.resize(at, 0);
        self.params.extend_from_slice(bytes);
    }

    /// Memory with bytes, and a pointer to it as the next parameter.
    fn data(&mut self, bytes: &[u8]) -> u64 {
        let at = self.memory.allocate(bytes.len());
        self.memory.write(at, bytes).expect("it was allocated");
        self.param(&at.to_le_bytes());
        at
    }

    fn run(&mut self, ptx: &str, name: &str, grid: [u32; 3], threads: u32) -> Result<(), Fault> {
        let module = Module::parse(ptx).expect("the kernel is known");
        let kernel = module.kernels.iter().find(|k| k.name == name).expect("it is there");
        // Races show in some order of turns; these are enough for all of them here.
        for seed in 0..4 {
            let params = &self.params;
            let launch = Launch { grid, block: [threads, 1, 1], shared: 0, params, seed };
            run(kernel, launch, &mut self.memory)?;
        }
        Ok(())
    }

    /// No neighbour of either kind yet.
    fn no_keys(&mut self) -> [u64; 2] {
        let none: Vec<u8> =
            (0..ROWS).flat_map(|_| 0x7f80_0000_ffff_ffffu64.to_le_bytes()).collect();
        [self.data(&none), self.data(&none)]
    }

    /// The indices of keys.
    fn indices(&mut self, at: u64) -> Vec<u32> {
        self.read(at, 2 * ROWS).into_iter().step_by(2).collect()
    }

    fn read(&mut self, at: u64, words: usize) -> Vec<u32> {
        let mut bytes = vec![0; words * 4];
        self.memory.read(at, &mut bytes).expect("the kernel wrote it");
        bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

const ROWS: usize = 70;
const DIM: usize = 33;

/// Rows on a line, and their labels: row i lies at i^2. `short` leaves out the last elements.
fn set(short: usize) -> [Vec<u8>; 2] {
    let rows = (0..ROWS * DIM - short)
        .map(|i| if i % DIM == 0 { ((i / DIM) * (i / DIM)) as f32 } else { 0.5 });
    let labels = (0..ROWS).flat_map(|i| (i as u16 % 3).to_le_bytes());
    [floats(rows), labels.collect()]
}

/// Searches them in themselves: their neighbours are known. Gives the keys of both kinds.
fn search(ptx: &str, short: usize) -> Result<[Vec<u32>; 2], Fault> {
    let mut bench = Bench::new();
    let [rows, labels] = set(short);
    let queries = bench.data(&rows);
    let query_labels = bench.data(&labels);
    bench.param(&queries.to_le_bytes());
    bench.param(&query_labels.to_le_bytes());
    let keys = bench.no_keys();
    for number in [ROWS as u32, ROWS as u32, DIM as u32, 0] {
        bench.param(&number.to_le_bytes());
    }
    // No index is left out but a row's own, and no list names some of the queries.
    for nothing in [0u64; 3] {
        bench.param(&nothing.to_le_bytes());
    }
    bench.run(ptx, "nearest", [2, 2, 1], 256)?;
    Ok(keys.map(|at| bench.indices(at)))
}

/// The same with each distance computed once.
fn search_itself(ptx: &str) -> Result<[Vec<u32>; 2], Fault> {
    let mut bench = Bench::new();
    for bytes in set(0) {
        bench.data(&bytes);
    }
    let keys = bench.no_keys();
    for number in [ROWS as u32, DIM as u32, 0] {
        bench.param(&number.to_le_bytes());
    }
    bench.run(ptx, "nearest_itself", [2, 2, 1], 256)?;
    Ok(keys.map(|at| bench.indices(at)))
}

/// The nearest of the same label is three rows down, of another one row down, as far as there are.
fn expected() -> [Vec<u32>; 2] {
    let down = |i: u32, by: u32| if i >= by { i - by } else { i + by };
    let rows = 0..ROWS as u32;
    [rows.clone().map(|i| down(i, 3)).collect(), rows.map(|i| down(i, 1)).collect()]
}

#[test]
fn the_search_is_right_before_it_is_broken() {
    assert_eq!(search(SEARCH, 0), Ok(expected()));
    assert_eq!(search_itself(SEARCH), Ok(expected()));
}

#[test]
fn a_barrier_that_is_missing_is_a_race() {
    type Search = fn(&str) -> Result<[Vec<u32>; 2], Fault>;
    let searches: [(&str, usize, Search); 2] =
        [("nearest", 2, |ptx| search(ptx, 0)), ("nearest_itself", 3, search_itself)];
    for (name, least, search) in searches {
        let kernel = from_kernel(SEARCH, name);
        let barriers = kernel.matches("bar.sync").count();
        assert!(barriers >= least, "{barriers} barriers");
        for at in 0..barriers {
            let broken = broken(&kernel, "bar.sync \t0;", "", at);
            let fault = search(&broken).expect_err("it is broken");
            let caught = matches!(
                fault.kind(),
                Fault::SharedRace { .. } | Fault::Uninitialised { space: "shared", .. }
            );
            assert!(caught, "{name}, barrier {at}: {fault}");
        }
    }
}

/// The kernels that the bench compares the search with.
#[test]
fn the_least_of_a_row_of_products_is_its_neighbour() {
    let unfused = include_str!("../../../cuda/kernels/ptx/unfused.75.ptx");
    let [rows, labels] = set(0);
    let count = ROWS as u32;
    let mut bench = Bench::new();
    bench.data(&rows);
    let lengths = bench.data(&floats([f32::NAN; ROWS]));
    [count, DIM as u32].iter().for_each(|number| bench.param(&number.to_le_bytes()));
    assert_eq!(bench.run(unfused, "squares", [count.div_ceil(8), 1, 1], 256), Ok(()));
    let at = |i: usize| (i * i) as f32;
    let rest = 0.25 * (DIM - 1) as f32;
    let squares: Vec<f32> = (0..ROWS).map(|i| at(i) * at(i) + rest).collect();
    for (got, expected) in bench.read(lengths, ROWS).into_iter().map(f32::from_bits).zip(&squares) {
        assert!((got - expected).abs() <= 1e-6 * expected, "{got}, not {expected}");
    }

    let mut bench = Bench::new();
    bench.data(&floats((0..ROWS * ROWS).map(|i| at(i / ROWS) * at(i % ROWS) + rest)));
    bench.data(&floats(squares));
    bench.data(&labels);
    let keys = bench.data(&[0; 16 * ROWS]);
    bench.param(&count.to_le_bytes());
    assert_eq!(bench.run(unfused, "least_of_row", [count, 1, 1], 256), Ok(()));
    let words = bench.read(keys, 4 * ROWS);
    let indices: [Vec<u32>; 2] =
        [0, 2].map(|kind| words.iter().skip(kind).step_by(4).copied().collect());
    assert_eq!(indices, expected());
}

/// Minima of rows and of columns, where each distance is computed once.
#[test]
fn a_minimum_of_either_side_that_is_lost_is_seen() {
    let kernel = from_kernel(SEARCH, "nearest_itself");
    let minima = kernel.matches("red.global.min.u64").count();
    assert!(minima > 1, "{minima} minima");
    for at in 0..minima {
        let broken = broken(&kernel, "red.global.min.u64", "red.global.max.u64", at);
        assert_ne!(search_itself(&broken), Ok(expected()), "minimum {at}");
    }
}

#[test]
fn reading_past_the_end_is_out_of_bounds() {
    let fault = search(SEARCH, 1).expect_err("an element is missing");
    assert!(matches!(fault.kind(), Fault::OutOfBounds { space: "global", .. }), "{fault}");
}

#[test]
fn labels_that_are_swapped_give_other_neighbours() {
    let kernel = from_kernel(SEARCH, "nearest");
    // Every comparison of labels, which are the kernel's only 16-bit ones.
    let swapped =
        kernel.replace("setp.eq.s16", "setp.was.s16").replace("setp.ne.s16", "setp.eq.s16");
    let swapped = swapped.replace("setp.was.s16", "setp.ne.s16");
    assert!(swapped != kernel, "the comparisons are there");
    let [same, other] = search(&swapped, 0).expect("it runs");
    assert_eq!([other, same], expected());
}

#[test]
fn a_maximum_in_place_of_the_minimum_is_seen() {
    let kernel = from_kernel(SEARCH, "nearest");
    let broken = kernel.replace("red.global.min.u64", "red.global.max.u64");
    assert!(broken != kernel, "the minimum is there");
    assert_ne!(search(&broken, 0), Ok(expected()));
}

#[test]
fn an_update_that_is_not_atomic_is_a_race() {
    let kernel = from_kernel(SEARCH, "nearest");
    let at = kernel.find("red.global.min.u64").expect("the minimum is atomic");
    let line = &kernel[at..at + kernel[at..].find(';').expect("a statement ends") + 1];
    let operands: Vec<&str> =
        line["red.global.min.u64".len()..line.len() - 1].split(',').map(str::trim).collect();
    let plain = format!("st.global.u64 {}, {};", operands[0], operands[1]);
    let fault = search(&kernel.replace(line, &plain), 0).expect_err("two blocks write");
    assert!(matches!(fault.kind(), Fault::GlobalRace { .. }), "{fault}");
}

#[test]
fn a_shuffle_that_some_lanes_skip_is_seen() {
    let kernel = from_kernel(SEARCH, "nearest");
    let at = kernel.find("shfl.sync").expect("rows are reduced by shuffles");
    let broken = only_for_few(&kernel, at);
    let fault = search(&broken, 0).expect_err("lanes are missing");
    let caught = matches!(fault.kind(), Fault::Divergence(_) | Fault::Deadlock(_));
    assert!(caught, "{fault}");
}

#[test]
fn a_barrier_that_some_threads_skip_is_seen() {
    let kernel = from_kernel(NORM, "l2_normalise");
    let at = kernel.find("bar.sync").expect("there are barriers");
    let broken = only_for_few(&kernel, at);
    let (rows, features) = (2u32, 200u32);
    let mut bench = Bench::new();
    bench.data(&floats((0..rows * features).map(|i| i as f32)));
    bench.data(&floats([0.0; 2]));
    bench.param(&features.to_le_bytes());
    let mut normalise = |ptx: &str| bench.run(ptx, "l2_normalise", [rows, 1, 1], 128);
    normalise(&kernel).expect("it runs before it is broken");
    let fault = normalise(&broken).expect_err("it is broken");
    let caught = matches!(
        fault.kind(),
        Fault::Divergence(_) | Fault::SharedRace { .. } | Fault::Uninitialised { .. }
    );
    assert!(caught, "{fault}");
}

/// A kernel by hand: a body between the loading of its parameters and its end.
fn by_hand(body: &str) -> String {
    format!(
        ".version 8.2
        .target sm_80
        .address_size 64
        .visible .entry kernel(.param .u64 in, .param .u64 out)
        {{
            .reg .b64 %in, %out, %at, %from, %to;
            .reg .b32 %t, %place, %by, %a, %b, %c, %d, %n;
            .reg .pred %p;
            .shared .align 16 .b8 room[256];
            ld.param.u64 %in, [in];
            ld.param.u64 %out, [out];
            mov.u32 %t, %tid.x;
            mul.wide.u32 %at, %t, 16;
            add.u64 %from, %in, %at;
            add.u64 %to, %out, %at;
            mov.u32 %place, room;
            shl.b32 %by, %t, 4;
            add.u32 %place, %place, %by;
            {body}
            ret;
        }}"
    )
}

fn by_hand_on(body: &str, threads: u32) -> Result<Vec<u32>, Fault> {
    let mut bench = Bench::new();
    bench.data(&floats((0..64).map(|i| i as f32)));
    let out = bench.data(&floats((0..64).map(|_| 0.0)));
    bench.run(&by_hand(body), "kernel", [1, 1, 1], threads)?;
    Ok(bench.read(out, 64))
}

const COPY: &str = "cp.async.cg.shared.global [%place], [%from], 16; cp.async.commit_group;";
const BACK: &str =
    "ld.shared.v4.f32 {%a, %b, %c, %d}, [%place]; st.global.v4.f32 [%to], {%a, %b, %c, %d};";

#[test]
fn an_asynchronous_copy_has_to_be_waited_for() {
    let waited = by_hand_on(&format!("{COPY} cp.async.wait_group 0; {BACK}"), 16)
        .expect("it was waited for");
    assert_eq!(waited, (0..64).map(|i| (i as f32).to_bits()).collect::<Vec<_>>());
    for body in [format!("{COPY} {BACK}"), format!("{COPY} cp.async.wait_group 1; {BACK}")] {
        let fault = by_hand_on(&body, 16).expect_err("it was not waited for");
        assert!(matches!(fault.kind(), Fault::Uninitialised { space: "shared", .. }), "{fault}");
    }
}

#[test]
fn a_copy_of_fewer_bytes_fills_with_zeros() {
    let body = format!(
        "mov.u32 %n, 8; cp.async.cg.shared.global [%place], [%from], 16, %n; cp.async.wait_all; {BACK}"
    );
    let found = by_hand_on(&body, 1).expect("it runs");
    assert_eq!(found[..4], [0, 1.0f32.to_bits(), 0, 0]);
}

#[test]
fn an_address_off_its_width_is_misaligned() {
    let fault =
        by_hand_on("ld.global.v4.f32 {%a, %b, %c, %d}, [%from+4];", 1).expect_err("off by 4");
    assert!(matches!(fault.kind(), Fault::Misaligned { bytes: 16, .. }), "{fault}");
}

#[test]
fn threads_of_one_block_race_in_global_memory() {
    let fault = by_hand_on("st.global.f32 [%out], 0f00000000;", 2).expect_err("both write");
    assert!(matches!(fault.kind(), Fault::GlobalRace { .. }), "{fault}");
    assert!(by_hand_on("atom.global.add.f32 %a, [%out], 0f3f800000;", 2).is_ok());
}

#[test]
fn threads_that_wait_apart_never_meet() {
    let body = "setp.eq.u32 %p, %t, 0; @%p bra $one; bar.sync 0; bra $end; $one: bar.sync 0; $end:";
    let fault = by_hand_on(&format!("{body} mov.u32 %t, %t;"), 2).expect_err("two barriers");
    assert!(matches!(fault.kind(), Fault::Divergence(_)), "{fault}");
}

#[test]
fn a_copy_has_to_be_in_a_group_that_is_waited_for() {
    let open = "cp.async.cg.shared.global [%place], [%from], 16; cp.async.wait_group 0;";
    let fault = by_hand_on(&format!("{open} {BACK}"), 16).expect_err("no group was closed");
    assert!(matches!(fault.kind(), Fault::Uninitialised { space: "shared", .. }), "{fault}");
}

/// Each thread writes its own place and reads that of the thread `away` from it.
fn neighbour(between: &str, away: u32) -> String {
    format!(
        "st.shared.u32 [%place], %t; {between} xor.b32 %t, %t, {away}; shl.b32 %by, %t, 4;
        mov.u32 %place, room; add.u32 %place, %place, %by; ld.shared.u32 %a, [%place];
        st.global.u32 [%to], %a;"
    )
}

fn caught_in_shared(fault: &Fault) -> bool {
    matches!(fault.kind(), Fault::SharedRace { .. } | Fault::Uninitialised { space: "shared", .. })
}

#[test]
fn a_barrier_of_the_warp_orders_the_warp_alone() {
    // The room holds 16 places: half a warp takes part.
    let body = |between: &str, away: u32| {
        format!("setp.ge.u32 %p, %t, 16; @%p ret; {}", neighbour(between, away))
    };
    assert!(by_hand_on(&body("bar.warp.sync 0xffff;", 1), 32).is_ok());
    let fault = by_hand_on(&body("", 1), 32).expect_err("nothing orders the lanes");
    assert!(caught_in_shared(&fault), "{fault}");
    // Pairs of lanes meet, but each reads from another pair.
    let pairs = "and.b32 %a, %t, 30; shl.b32 %a, 3, %a; bar.warp.sync %a;";
    assert!(by_hand_on(&body(pairs, 1), 32).is_ok());
    let fault = by_hand_on(&body(pairs, 2), 32).expect_err("the pairs did not meet");
    assert!(caught_in_shared(&fault), "{fault}");
}

#[test]
fn a_barrier_of_some_warps_orders_these() {
    // Warps 0 and 1 meet at barrier 1, warps 2 and 3 at barrier 2; the first lane of each takes part.
    let body = |away: u32| {
        format!(
            "shr.u32 %b, %t, 6; add.u32 %b, %b, 1; and.b32 %c, %t, 31; shr.u32 %d, %t, 5;
            mov.u32 %place, room; shl.b32 %by, %d, 2; add.u32 %place, %place, %by;
            setp.eq.u32 %p, %c, 0; @%p st.shared.u32 [%place], %d; barrier.sync %b, 64;
            xor.b32 %d, %d, {away}; mov.u32 %place, room; shl.b32 %by, %d, 2;
            add.u32 %place, %place, %by; @%p ld.shared.u32 %a, [%place];"
        )
    };
    assert!(by_hand_on(&body(1), 128).is_ok());
    let fault = by_hand_on(&body(2), 128).expect_err("these warps did not meet");
    assert!(caught_in_shared(&fault), "{fault}");
}

#[test]
fn a_warp_that_arrives_need_not_wait() {
    // Warp 0 writes and goes on, warp 1 waits for it and reads.
    let body =
        "setp.lt.u32 %p, %t, 32; mov.u32 %place, room; and.b32 %a, %t, 31; shl.b32 %by, %a, 2;
        add.u32 %place, %place, %by; @%p st.shared.u32 [%place], %t; @%p bar.arrive 3, 64;
        @%p ret; bar.sync 3, 64; ld.shared.u32 %a, [%place];";
    assert!(by_hand_on(body, 64).is_ok());
    let fault = by_hand_on(&body.replace("@%p bar.arrive 3, 64;", ""), 64);
    let fault = fault.expect_err("nobody arrives");
    assert!(matches!(fault.kind(), Fault::Deadlock(_)), "{fault}");
}

#[test]
fn halves_of_a_word_are_written_by_two_threads() {
    let body = |away: u32| {
        format!(
            "and.b32 %by, %t, {away}; shl.b32 %by, %by, 1; mov.u32 %place, room;
            add.u32 %place, %place, %by; st.shared.u16 [%place], %t;"
        )
    };
    assert!(by_hand_on(&body(1), 2).is_ok());
    let fault = by_hand_on(&body(0), 2).expect_err("both write the same half");
    assert!(matches!(fault.kind(), Fault::SharedRace { .. }), "{fault}");
}

#[test]
fn a_plain_read_beside_atomics_is_a_race() {
    let body = |load: &str| {
        format!(
            "setp.eq.u32 %p, %t, 0; @%p st.shared.u32 [room], 0; bar.sync 0;
            atom.shared.add.u32 %a, [room], 1; {load} %b, [room];"
        )
    };
    let fault = by_hand_on(&body("ld.shared.u32"), 2).expect_err("others still add");
    assert!(matches!(fault.kind(), Fault::SharedRace { .. }), "{fault}");
    assert!(by_hand_on(&body("ld.volatile.shared.u32"), 2).is_ok());
}

#[test]
fn blocks_race_in_global_memory_and_launches_do_not() {
    let mut bench = Bench::new();
    bench.data(&floats([0.0; 64]));
    bench.data(&floats([0.0; 64]));
    let ptx = by_hand("st.global.u32 [%out], 1;");
    assert!(bench.run(&ptx, "kernel", [1, 1, 1], 1).is_ok(), "four launches, one after the other");
    let fault = bench.run(&ptx, "kernel", [2, 1, 1], 1).expect_err("both blocks write");
    assert!(matches!(fault.kind(), Fault::GlobalRace { .. }), "{fault}");
}

#[test]
fn a_barrier_orders_global_memory_within_a_block() {
    let body = |between: &str| {
        format!(
            "st.global.u32 [%to], %t; {between} xor.b32 %t, %t, 1; mul.wide.u32 %at, %t, 16;
            add.u64 %to, %out, %at; ld.global.u32 %a, [%to];"
        )
    };
    assert!(by_hand_on(&body("bar.sync 0;"), 16).is_ok());
    let fault = by_hand_on(&body(""), 16).expect_err("nothing orders them");
    assert!(matches!(fault.kind(), Fault::GlobalRace { .. }), "{fault}");
}

#[test]
fn what_is_written_is_not_read_as_constant() {
    let body = "st.global.u32 [%to], %t; ld.global.nc.u32 %a, [%to];";
    let fault = by_hand_on(body, 1).expect_err("it was written just now");
    assert!(matches!(fault.kind(), Fault::Stale { .. }), "{fault}");
}

#[test]
fn memory_that_was_freed_is_named() {
    let mut bench = Bench::new();
    let gone = bench.data(&floats([0.0; 64]));
    bench.data(&floats([0.0; 64]));
    assert!(bench.memory.free(gone));
    assert!(!bench.memory.free(gone), "once only");
    let fault = bench.run(&by_hand("ld.global.u32 %a, [%in];"), "kernel", [1, 1, 1], 1);
    let fault = fault.expect_err("it is gone");
    let region = match fault.kind() {
        Fault::OutOfBounds { region, .. } => *region,
        _ => None,
    };
    assert_eq!(region.map(|r| (r.at, r.bytes, r.freed)), Some((gone, 256, true)), "{fault}");
}

#[test]
fn global_memory_that_nobody_wrote_is_not_read() {
    let mut bench = Bench::new();
    bench.data(&floats([0.0; 64]));
    let fresh = bench.memory.allocate(256);
    bench.param(&fresh.to_le_bytes());
    let fault = bench.run(&by_hand("ld.global.u32 %a, [%out+8];"), "kernel", [1, 1, 1], 1);
    let fault = fault.expect_err("it was never written");
    let text = fault.to_string();
    assert!(matches!(fault.kind(), Fault::Uninitialised { space: "global", .. }), "{text}");
    assert!(text.contains("kernel, block (0, 0, 0), thread 0") && text.contains("256 bytes"));
}

#[test]
fn ends_of_shared_and_of_a_threads_own_memory() {
    for body in [
        "ld.shared.u32 %a, [room+256];",
        "{ .local .b32 own[2]; st.local.u32 [own+8], 1; }",
        "ld.param.u32 %a, [out+8];",
    ] {
        let fault = by_hand_on(body, 1).expect_err("it is past the end");
        assert!(matches!(fault.kind(), Fault::OutOfBounds { .. }), "{fault}");
    }
}

#[test]
fn a_thread_that_waits_for_nobody_is_endless() {
    let fault = by_hand_on("$again: bra $again;", 1).expect_err("it has no end");
    assert!(matches!(fault.kind(), Fault::Endless), "{fault}");
    // Waiting for another warp's flag has one.
    let body = "setp.eq.u32 %p, %t, 0; @%p st.shared.u32 [room], 0; bar.sync 0;
        setp.ge.u32 %p, %t, 32; @%p st.volatile.shared.u32 [room], 1; @%p ret;
        $again: ld.volatile.shared.u32 %a, [room]; setp.eq.u32 %p, %a, 0; @%p bra $again;";
    assert!(by_hand_on(body, 64).is_ok());
}

#[test]
fn launches_of_another_shape_are_refused() {
    let module = Module::parse(&by_hand("")).unwrap();
    let (kernel, mut memory) = (&module.kernels[0], Memory::default());
    let mut refused = |block, params: &[u8]| {
        let launch = Launch { grid: [1; 3], block, shared: 0, params, seed: 0 };
        matches!(run(kernel, launch, &mut memory), Err(Fault::Launch(_)))
    };
    assert!(refused([1025, 1, 1], &[0; 16]));
    assert!(refused([0, 1, 1], &[0; 16]));
    assert!(refused([1, 1, 1], &[0; 8]));
    assert!(!refused([1, 1, 1], &[0; 16]));
}

#[test]
fn what_is_not_known_is_named() {
    let module = Module::parse(&by_hand("wgmma.fence.sync.aligned;"));
    let error = module.expect_err("it is not known").to_string();
    assert!(error.contains("wgmma.fence.sync.aligned is not known"), "{error}");
}
