//! Fetching the official data sets.
//!
//! A fetch that breaks off leaves a `.part` file and goes on from there the next time. What came
//! is checked by its checksum, written beside, synced, and renamed: under its final name a file
//! is whole or not there. Of an archive only the files that the set names are unpacked.
//!
//! ```no_run
//! use sepal_models::data::{self, download};
//!
//! let cache = download::cache()?;
//! let folder = download::fetch(&download::Set::fashion_mnist(), &cache, &mut |progress| {
//!     eprintln!("{}: {} bytes", progress.name, progress.bytes);
//! })?;
//! let split = data::open(folder)?;
//! # Ok::<(), data::DataError>(())
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use sha2::Digest;
use ureq::Agent;

use super::DataError;

/// Bytes read at once.
const PIECE: usize = 1 << 16;
/// Requests in a row that may bring nothing new before the fetch is given up.
const FAILURES: u32 = 3;
/// Requests for one file at most.
const REQUESTS: u32 = 100;

/// A data set: what to fetch and the files it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The name of its folder in the cache.
    pub name: String,
    /// What to fetch.
    pub sources: Vec<SetSource>,
}

/// One file on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSource {
    /// Where it is; the later addresses are tried where the earlier ones fail.
    pub urls: Vec<String>,
    /// The checksum of the bytes as they are fetched, where it is known.
    pub checksum: Option<Checksum>,
    /// How the files are packed in it.
    pub packing: Packing,
    /// The files that it holds; exactly one unless it is an archive.
    pub files: Vec<SetFile>,
}

/// A file of a data set, unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetFile {
    /// Its place in the set's folder, and in the archive, with `/` between names.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its checksum. It may be missing only where the fetched file has one.
    pub checksum: Option<Checksum>,
}

/// How files are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// One file by gzip.
    Gzip,
    /// A tar archive by gzip.
    TarGzip,
}

/// A checksum, in lower-case hexadecimal digits.
///
/// MD5 finds damage, not malice: it serves where the publisher gives nothing better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// MD5, 32 digits.
    Md5(String),
    /// SHA-256, 64 digits.
    Sha256(String),
}

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The address.
    pub url: &'a str,
    /// The file's name, the last part of the address.
    pub name: &'a str,
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes that it has in all, where the server says.
    pub total: Option<u64>,
}

impl Set {
    /// Fashion-MNIST (Zalando SE, MIT licence), 30 MB to fetch.
    pub fn fashion_mnist() -> Self {
        let sums = [
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ];
        let places = [
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ];
        Self { name: "fashion-mnist".to_owned(), sources: idx(places, sums) }
    }

    /// MNIST (LeCun, Cortes and Burges), 11 MB to fetch, from the mirrors that stand in for the
    /// authors' server.
    pub fn mnist() -> Self {
        let sums = [
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ];
        let places = [
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ];
        Self { name: "mnist".to_owned(), sources: idx(places, sums) }
    }

    /// CIFAR-10 (Krizhevsky, 2009) in its binary version, 170 MB to fetch.
    pub fn cifar10() -> Self {
        let sums = [
            ("data_batch_1", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
            ("data_batch_2", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
            ("data_batch_3", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
            ("data_batch_4", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
            ("data_batch_5", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
            ("test_batch", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
        ];
        let file = |(name, sum): (&str, &str)| SetFile {
            path: format!("cifar-10-batches-bin/{name}.bin"),
            bytes: 30_730_000,
            checksum: Some(Checksum::Sha256(sum.to_owned())),
        };
        let source = SetSource {
            urls: vec!["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz".to_owned()],
            checksum: Some(Checksum::Md5("c32a1d4ab5d03f1284b67883e8d87530".to_owned())),
            packing: Packing::TarGzip,
            files: sums.map(file).to_vec(),
        };
        Self { name: "cifar-10".to_owned(), sources: vec![source] }
    }

    /// CIFAR-100 (Krizhevsky, 2009) in its binary version, 169 MB to fetch.
    pub fn cifar100() -> Self {
        let file = |(name, bytes): (&str, u64)| SetFile {
            path: format!("cifar-100-binary/{name}.bin"),
            bytes,
            checksum: None,
        };
        let source = SetSource {
            urls: vec!["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz".to_owned()],
            checksum: Some(Checksum::Md5("03b5dce01913d631647c71ecec9e9cb8".to_owned())),
            packing: Packing::TarGzip,
            files: [("train", 153_700_000), ("test", 30_740_000)].map(file).to_vec(),
        };
        Self { name: "cifar-100".to_owned(), sources: vec![source] }
    }

    /// AG's News (Gulli; as classification by Zhang, Zhao and LeCun, 2015; for non-commercial use), 12 MB
    /// to fetch, from the mirror of fast.ai.
    pub fn ag_news() -> Self {
        let sums = [
            "76a0a2d2f92b286371fe4d4044640910a04a803fdd2538e0f3f29a5c6f6b672e",
            "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
        ];
        let sums = sums.map(|sum| Some(Checksum::Sha256(sum.to_owned())));
        let archive = "b86f328f4dbd072486591cb7a5644dcd";
        text("ag-news", "ag_news_csv", archive, [29_470_338, 1_857_427, 31], sums)
    }

    /// DBPedia, 14 classes of its ontology (Zhang, Zhao and LeCun, 2015; CC BY-SA), 68 MB to fetch, from
    /// the mirror of fast.ai.
    pub fn dbpedia() -> Self {
        let archive = "239c7837b9e79db34486f3de6a00e38e";
        text("dbpedia", "dbpedia_csv", archive, [174_148_970, 21_775_285, 146], [None, None])
    }
}

/// A set of texts: `train.csv`, `test.csv` and `classes.txt` in one folder of one archive, with the
/// archive's MD5, the lengths of the three, and SHA-256 of the first two where they are known.
fn text(
    name: &str,
    folder: &str,
    archive: &str,
    [train, test, classes]: [u64; 3],
    [train_sum, test_sum]: [Option<Checksum>; 2],
) -> Set {
    let files = [
        ("train.csv", train, train_sum),
        ("test.csv", test, test_sum),
        ("classes.txt", classes, None),
    ];
    let source = SetSource {
        urls: vec![format!("https://s3.amazonaws.com/fast-ai-nlp/{folder}.tgz")],
        checksum: Some(Checksum::Md5(archive.to_owned())),
        packing: Packing::TarGzip,
        files: files
            .map(|(file, bytes, checksum)| SetFile {
                path: format!("{folder}/{file}"),
                bytes,
                checksum,
            })
            .to_vec(),
    };
    Set { name: name.to_owned(), sources: vec![source] }
}

/// The four files of MNIST and Fashion-MNIST. Their `.gz` forms differ from place to place, what
/// they unpack to does not.
fn idx(places: [&str; 2], sums: [&str; 4]) -> Vec<SetSource> {
    let files = [
        ("train-images-idx3-ubyte", 47_040_016),
        ("train-labels-idx1-ubyte", 60_008),
        ("t10k-images-idx3-ubyte", 7_840_016),
        ("t10k-labels-idx1-ubyte", 10_008),
    ];
    let source = |((name, bytes), sum): ((&str, u64), &str)| SetSource {
        urls: places.map(|place| format!("{place}{name}.gz")).to_vec(),
        checksum: None,
        packing: Packing::Gzip,
        files: vec![SetFile {
            path: name.to_owned(),
            bytes,
            checksum: Some(Checksum::Sha256(sum.to_owned())),
        }],
    };
    files.into_iter().zip(sums).map(source).collect()
}

/// The folder that data sets are kept in: `$SEPAL_CACHE`, or `sepal` in the platform's cache
/// folder (`$XDG_CACHE_HOME` or `~/.cache`, `~/Library/Caches`, `%LOCALAPPDATA%`).
///
/// # Errors
/// None of these variables is set.
pub fn cache() -> Result<PathBuf, DataError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = set("SEPAL_CACHE") {
        return Ok(folder.into());
    }
    let platform = if cfg!(target_os = "windows") {
        set("LOCALAPPDATA").map(PathBuf::from)
    } else if cfg!(target_os = "macos") {
        set("HOME").map(|home| Path::new(&home).join("Library/Caches"))
    } else {
        let home = || set("HOME").map(|home| Path::new(&home).join(".cache"));
        set("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)
    };
    platform.map(|folder| folder.join("sepal")).ok_or_else(|| {
        let expected = "a folder there, or in the variable of the platform's cache folder";
        DataError::content(Path::new("SEPAL_CACHE"), "environment variable", "nothing", expected)
    })
}

/// Makes the set's files lie in its folder under `cache`, and gives the folder.
///
/// Files that are there and whole are left alone; a file of another length or checksum is
/// replaced. `progress` is called after every 64 KiB at most. Two programs that fetch the same
/// set take turns.
///
/// # Errors
/// A server that cannot be reached, an answer other than the file, a checksum that is wrong, and
/// a disk that cannot be written. What was fetched before a connection broke stays for the next
/// time.
pub fn fetch(
    set: &Set,
    cache: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf, DataError> {
    let config = Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .http_status_as_error(false);
    Fetch { agent: config.build().into(), pause: Duration::from_secs(1), progress }.set(set, cache)
}

/// Why a request did not bring the whole file.
enum Failure {
    /// Another one may.
    Again(DataError),
    /// No other one will.
    Never(DataError),
}

/// What a fetch needs.
struct Fetch<'a> {
    agent: Agent,
    /// The pause before a request is repeated.
    pause: Duration,
    progress: &'a mut dyn FnMut(Progress<'_>),
}

impl Fetch<'_> {
    fn set(&mut self, set: &Set, cache: &Path) -> Result<PathBuf, DataError> {
        let folder = inside(cache, &set.name)?;
        create(&folder)?;
        let lock = folder.join(".lock");
        let file = File::create(&lock).map_err(|e| DataError::io(&lock, WRITE, e))?;
        // Not every file system has locks; without them two programs do the work twice.
        let _unlocked_when_closed = file.lock().map(|()| file);
        for source in &set.sources {
            self.source(source, &folder)?;
        }
        Ok(folder)
    }

    fn source(&mut self, source: &SetSource, folder: &Path) -> Result<(), DataError> {
        let mut whole = true;
        for file in &source.files {
            let path = inside(folder, &file.path)?;
            if file.checksum.is_none() && source.checksum.is_none() {
                let expected = "one for the file or for what it comes in";
                return Err(DataError::content(&path, "checksum", "none", expected));
            }
            whole &= path.is_file() && verify(&path, file.bytes, file.checksum.as_ref()).is_ok();
        }
        if whole {
            return Ok(());
        }
        let mut failed = DataError::content(folder, "addresses to fetch from", "none", "1 or more");
        for (number, url) in source.urls.iter().enumerate() {
            match self.address(source, url, number, folder) {
                Ok(()) => return Ok(()),
                // Another address does not help a disk.
                Err(error @ DataError::Io { .. }) => return Err(error),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Fetches from one address and unpacks.
    fn address(
        &mut self,
        source: &SetSource,
        url: &str,
        number: usize,
        folder: &Path,
    ) -> Result<(), DataError> {
        // Each address has its own part file: the bytes may be packed in another way.
        let part = inside(folder, &format!("{}.{number}.part", last(url)))?;
        loop {
            let resumed = length(&part) > 0;
            self.whole(source, url, &part)?;
            let unpacked = match &source.checksum {
                Some(checksum) => verify_sum(&part, checksum),
                None => Ok(()),
            };
            let unpacked = unpacked.and_then(|()| unpack(source, &part, folder));
            if matches!(unpacked, Err(DataError::Io { .. })) {
                return unpacked;
            }
            fs::remove_file(&part).map_err(|e| DataError::io(&part, "could not be removed", e))?;
            match unpacked {
                // The old part may have been the fault: once more from the beginning.
                Err(_) if resumed => {}
                Err(error) => {
                    return Err(DataError::Fetch {
                        url: url.to_owned(),
                        found: format!("a file that is not the one wanted ({error})"),
                        expected: "the official file".to_owned(),
                    });
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Repeats requests until the part file is whole.
    fn whole(&mut self, source: &SetSource, url: &str, part: &Path) -> Result<(), DataError> {
        // Nothing that is packed grows by a quarter; a body without end is cut off.
        let all = source.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.bytes));
        let limit = match source.packing {
            // An archive may hold files that are not wanted.
            Packing::TarGzip => all.saturating_mul(4),
            Packing::Plain | Packing::Gzip => all.saturating_add(all / 4),
        }
        .saturating_add(1 << 20);
        let (mut failures, mut requests) = (0, 0);
        loop {
            let had = length(part);
            match self.request(url, part, had, limit) {
                Ok(()) => return Ok(()),
                Err(Failure::Never(error)) => return Err(error),
                Err(Failure::Again(error)) => {
                    requests += 1;
                    failures = if length(part) > had { 0 } else { failures + 1 };
                    if failures >= FAILURES || requests >= REQUESTS {
                        return Err(error);
                    }
                    std::thread::sleep(self.pause);
                }
            }
        }
    }

    /// One request, for what is missing of the part file.
    fn request(&mut self, url: &str, part: &Path, had: u64, limit: u64) -> Result<(), Failure> {
        let wrong = |found: String, expected: &str| DataError::Fetch {
            url: url.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        let mut request = self.agent.get(url);
        if had > 0 {
            request = request.header("Range", format!("bytes={had}-"));
        }
        let mut response = request.call().map_err(|error| {
            let found = format!("no answer ({error})");
            Failure::Again(wrong(found, "an answer of the server; is there a connection?"))
        })?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let range = header("content-range").and_then(|text| text.trim().strip_prefix("bytes "));
        let of_all =
            range.and_then(|range| range.rsplit_once('/')).and_then(|(_, all)| number(all));
        let remove = || fs::remove_file(part).map_err(|e| removing(part, e));
        let status = response.status();
        let (mut at, total) = match status.as_u16() {
            200 => (0, header("content-length").and_then(number)),
            206 if had > 0 => {
                let from = range.and_then(|range| range.split_once('-')).and_then(|r| number(r.0));
                if from != Some(had) {
                    let found = format!("the range `{}`", range.unwrap_or("none"));
                    remove()?;
                    return Err(Failure::Again(wrong(found, &format!("bytes from {had} on"))));
                }
                (had, of_all)
            }
            // Nothing is left to send: the part is whole, or it is no part of this file.
            416 if had > 0 && of_all == Some(had) => return Ok(()),
            416 if had > 0 => {
                remove()?;
                return Err(Failure::Again(wrong(format!("HTTP status {status}"), "200 or 206")));
            }
            429 | 500..=599 => {
                let found = format!("HTTP status {status}");
                return Err(Failure::Again(wrong(found, "200 or 206")));
            }
            _ => {
                let found = format!("HTTP status {status}");
                return Err(Failure::Never(wrong(found, "200 or 206")));
            }
        };
        let write = |error| Failure::Never(DataError::io(part, WRITE, error));
        let mut file = if at == 0 {
            File::create(part).map_err(write)?
        } else {
            OpenOptions::new().append(true).open(part).map_err(write)?
        };
        let mut body = response.body_mut().as_reader();
        let mut piece = vec![0; PIECE];
        loop {
            let count = match body.read(&mut piece) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let found = format!("a connection that broke after {at} bytes ({error})");
                    return Err(Failure::Again(wrong(found, &expected_total(total))));
                }
            };
            if count == 0 {
                break;
            }
            at += count as u64;
            if at > limit {
                let _ = fs::remove_file(part);
                return Err(Failure::Never(wrong(
                    format!("more than {limit} bytes"),
                    "a file of the official length",
                )));
            }
            file.write_all(piece.get(..count).unwrap_or_default()).map_err(write)?;
            (self.progress)(Progress { url, name: last(url), bytes: at, total });
        }
        if total.is_some_and(|total| total != at) {
            let found = format!("a connection that ended after {at} bytes");
            return Err(Failure::Again(wrong(found, &expected_total(total))));
        }
        Ok(())
    }
}

const WRITE: &str = "could not be written";

fn expected_total(total: Option<u64>) -> String {
    total.map_or_else(|| "the whole file".to_owned(), |total| format!("{total} bytes"))
}

fn removing(path: &Path, error: std::io::Error) -> Failure {
    Failure::Never(DataError::io(path, "could not be removed", error))
}

/// The last part of an address, without a query.
fn last(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

/// The length of a file, 0 where there is none.
fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

fn create(folder: &Path) -> Result<(), DataError> {
    fs::create_dir_all(folder).map_err(|e| DataError::io(folder, "could not be created", e))
}

/// A path below a folder.
fn inside(folder: &Path, path: &str) -> Result<PathBuf, DataError> {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if path.is_empty() || path.contains('\\') || !Path::new(path).components().all(plain) {
        let expected = "a relative path of plain names";
        return Err(DataError::content(folder, "path in it", format!("`{path}`"), expected));
    }
    Ok(folder.join(path))
}

/// A running checksum.
enum Sum {
    Md5(md5::Md5),
    Sha256(sha2::Sha256),
}

impl Sum {
    fn new(checksum: &Checksum) -> Self {
        match checksum {
            Checksum::Md5(_) => Self::Md5(md5::Md5::new()),
            Checksum::Sha256(_) => Self::Sha256(sha2::Sha256::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(sum) => sum.update(bytes),
            Self::Sha256(sum) => sum.update(bytes),
        }
    }

    fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Md5(sum) => hex(&sum.finalize()),
            Self::Sha256(sum) => hex(&sum.finalize()),
        }
    }
}

/// Copies a stream, at most one byte more than `bytes`, and checks its length and checksum.
fn copy(
    mut from: impl Read,
    mut to: impl FnMut(&[u8]) -> Result<(), DataError>,
    path: &Path,
    bytes: u64,
    checksum: Option<&Checksum>,
) -> Result<(), DataError> {
    let mut sum = checksum.map(|checksum| (Sum::new(checksum), checksum));
    let mut from = from.by_ref().take(bytes.saturating_add(1));
    let mut piece = vec![0; PIECE];
    let mut length = 0;
    loop {
        let count = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let found = format!("data that does not unpack ({error})");
                let place = format!("byte {length}");
                return Err(DataError::content(path, place, found, "a whole file"));
            }
        };
        let piece = piece.get(..count).unwrap_or_default();
        length += count as u64;
        if let Some((sum, _)) = &mut sum {
            sum.update(piece);
        }
        to(piece)?;
    }
    if length != bytes {
        let found = if length > bytes { "more".to_owned() } else { format!("{length} bytes") };
        return Err(DataError::content(path, "length", found, format!("{bytes} bytes")));
    }
    if let Some((sum, Checksum::Md5(expected) | Checksum::Sha256(expected))) = sum {
        let found = sum.finish();
        if !found.eq_ignore_ascii_case(expected) {
            return Err(DataError::content(path, "checksum", found, expected));
        }
    }
    Ok(())
}

fn opened(path: &Path) -> Result<File, DataError> {
    File::open(path).map_err(|error| DataError::io(path, "could not be opened", error))
}

/// Checks a file that lies on disk.
fn verify(path: &Path, bytes: u64, checksum: Option<&Checksum>) -> Result<(), DataError> {
    if length(path) != bytes {
        let found = format!("{} bytes", length(path));
        return Err(DataError::content(path, "length", found, format!("{bytes} bytes")));
    }
    match checksum {
        Some(checksum) => verify_sum(path, checksum),
        None => Ok(()),
    }
}

fn verify_sum(path: &Path, checksum: &Checksum) -> Result<(), DataError> {
    copy(opened(path)?, |_| Ok(()), path, length(path), Some(checksum))
}

/// Unpacks the wanted files, each under its final name only once it is known to be right.
fn unpack(source: &SetSource, part: &Path, folder: &Path) -> Result<(), DataError> {
    let packed = BufReader::with_capacity(PIECE, opened(part)?);
    if source.packing != Packing::TarGzip {
        let [file] = source.files.as_slice() else {
            let found = format!("{} files", source.files.len());
            return Err(DataError::content(part, "set's description", found, "1, or an archive"));
        };
        return match source.packing {
            Packing::Plain => place(packed, file, folder),
            _ => place(MultiGzDecoder::new(packed), file, folder),
        };
    }
    let mut missing: Vec<&SetFile> = source.files.iter().collect();
    let broken = |error: std::io::Error| {
        let found = format!("data that does not unpack ({error})");
        DataError::content(part, "archive", found, "a whole tar archive")
    };
    let mut archive = tar::Archive::new(MultiGzDecoder::new(packed));
    for entry in archive.entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        // Names are compared, never used: where a file goes is the set's decision alone.
        let name = entry.path_bytes().into_owned();
        let name = name.strip_prefix(b"./").unwrap_or(&name);
        let wanted = missing.iter().position(|file| file.path.as_bytes() == name);
        if let Some(wanted) = wanted
            && entry.header().entry_type().is_file()
        {
            place(entry, missing.swap_remove(wanted), folder)?;
        }
        if missing.is_empty() {
            break;
        }
    }
    match missing.first() {
        None => Ok(()),
        Some(file) => Err(DataError::content(part, "archive", "no such file", &file.path)),
    }
}

/// Writes a file beside its place, checks and syncs it, and renames it.
fn place(from: impl Read, file: &SetFile, folder: &Path) -> Result<(), DataError> {
    let path = inside(folder, &file.path)?;
    let beside = inside(folder, &format!("{}.new", file.path))?;
    let parent = path.parent().unwrap_or(folder);
    create(parent)?;
    let failed = |error| DataError::io(&beside, WRITE, error);
    let mut out = File::create(&beside).map_err(failed)?;
    let write = |piece: &[u8]| out.write_all(piece).map_err(failed);
    let copied = copy(from, write, &path, file.bytes, file.checksum.as_ref());
    let placed = copied
        .and_then(|()| out.sync_all().map_err(failed))
        .and_then(|()| fs::rename(&beside, &path).map_err(|e| DataError::io(&path, WRITE, e)));
    if placed.is_err() {
        // The first error says more than a second one would.
        let _ = fs::remove_file(&beside);
    }
    placed?;
    // The new name is in the folder only when the folder is written too.
    #[cfg(unix)]
    opened(parent)?.sync_all().map_err(|e| DataError::io(parent, WRITE, e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::super::tests::{Folder, gzip, says};
    use super::*;

    /// What the test server answers: status line and headers, then the body, then the connection
    /// closes.
    struct Answer(String, Vec<u8>);

    /// The whole body, of which only the first bytes are sent.
    fn sends(body: &[u8], count: usize) -> Answer {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", body.len());
        Answer(head, body[..count].to_vec())
    }

    /// The bytes from a place on.
    fn part(body: &[u8], from: usize) -> Answer {
        let (last, all) = (body.len() - 1, body.len());
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\n\
             Content-Range: bytes {from}-{last}/{all}\r\n",
            all - from
        );
        Answer(head, body[from..].to_vec())
    }

    fn status(line: &str) -> Answer {
        Answer(format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n"), Vec::new())
    }

    /// A server on this machine that lives as long as the test.
    struct Server {
        url: String,
        /// The first byte asked for, of each request.
        seen: Arc<Mutex<Vec<Option<usize>>>>,
    }

    impl Server {
        /// `answer` is given the number of the request, its path, and the first byte asked for.
        fn new(answer: impl Fn(usize, &str, Option<usize>) -> Answer + Send + 'static) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let seen = Arc::new(Mutex::new(Vec::new()));
            let log = Arc::clone(&seen);
            std::thread::spawn(move || {
                for (number, stream) in listener.incoming().enumerate() {
                    // A client that went away is the test's business.
                    let _ =
                        Self::serve(stream.unwrap(), &log, |path, from| answer(number, path, from));
                }
            });
            Self { url, seen }
        }

        fn serve(
            stream: TcpStream,
            log: &Mutex<Vec<Option<usize>>>,
            answer: impl Fn(&str, Option<usize>) -> Answer,
        ) -> std::io::Result<()> {
            let mut lines = BufReader::new(stream.try_clone()?).lines();
            let first = lines.next().unwrap()?;
            let path = first.split(' ').nth(1).unwrap().to_owned();
            let mut from = None;
            for line in lines {
                let line = line?.to_ascii_lowercase();
                if line.is_empty() {
                    break;
                }
                if let Some(range) = line.strip_prefix("range: bytes=") {
                    from = range.strip_suffix('-').unwrap().parse().ok();
                }
            }
            log.lock().unwrap().push(from);
            let Answer(head, body) = answer(&path, from);
            let mut stream = stream;
            stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
            stream.write_all(&body)?;
            stream.shutdown(Shutdown::Both)
        }

        /// The first bytes asked for so far.
        fn ranges(&self) -> Vec<Option<usize>> {
            self.seen.lock().unwrap().clone()
        }
    }

    fn get(set: &Set, cache: &Path) -> Result<PathBuf, DataError> {
        let config = Agent::config_builder().proxy(None).http_status_as_error(false);
        let progress = &mut |progress: Progress<'_>| assert!(progress.bytes > 0);
        let agent = config.build().into();
        Fetch { agent, pause: Duration::ZERO, progress }.set(set, cache)
    }

    fn sha256(bytes: &[u8]) -> Checksum {
        let mut sum = Sum::new(&Checksum::Sha256(String::new()));
        sum.update(bytes);
        Checksum::Sha256(sum.finish())
    }

    fn file(path: &str, bytes: &[u8]) -> SetFile {
        SetFile { path: path.to_owned(), bytes: bytes.len() as u64, checksum: Some(sha256(bytes)) }
    }

    fn set(urls: &[String], packing: Packing, files: Vec<SetFile>) -> Set {
        let source = SetSource { urls: urls.to_vec(), checksum: None, packing, files };
        Set { name: "a-set".to_owned(), sources: vec![source] }
    }

    /// Bytes that do not compress well.
    fn noise(count: u32) -> Vec<u8> {
        (0..count).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    /// The names in a folder, without the lock.
    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name != ".lock");
        names.sort();
        names
    }

    #[test]
    fn checksums_are_the_published_ones() {
        // RFC 1321, FIPS 180-4.
        let mut sum = Sum::new(&Checksum::Md5(String::new()));
        sum.update(b"abc");
        assert_eq!(sum.finish(), "900150983cd24fb0d6963f7d28e17f72");
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), Checksum::Sha256(sum.to_owned()));
    }

    #[test]
    fn the_official_sets_are_well_formed() {
        for (set, files) in [
            (Set::fashion_mnist(), 4),
            (Set::mnist(), 4),
            (Set::cifar10(), 6),
            (Set::cifar100(), 2),
            (Set::ag_news(), 3),
            (Set::dbpedia(), 3),
        ] {
            let mut count = 0;
            for source in &set.sources {
                assert!(source.urls.iter().all(|url| url.starts_with("http")));
                for file in &source.files {
                    assert!(file.checksum.is_some() || source.checksum.is_some());
                    inside(Path::new("x"), &file.path).unwrap();
                    count += 1;
                }
                let files = source.files.iter().filter_map(|file| file.checksum.as_ref());
                for sum in files.chain(&source.checksum) {
                    let (sum, digits) = match sum {
                        Checksum::Md5(sum) => (sum, 32),
                        Checksum::Sha256(sum) => (sum, 64),
                    };
                    assert_eq!(sum.len(), digits);
                    assert!(sum.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
                }
            }
            assert_eq!(count, files);
        }
    }

    #[test]
    fn a_set_is_fetched_once() {
        let data = noise(200_000);
        let (packed, cache) = (gzip(&data), Folder::new());
        let server = Server::new(move |_, _, _| sends(&packed, packed.len()));
        let set = set(&[server.url.clone() + "/x.gz?y=/z"], Packing::Gzip, vec![file("x", &data)]);
        let folder = get(&set, cache.path()).unwrap();
        assert_eq!(folder, cache.path().join("a-set"));
        assert_eq!(fs::read(folder.join("x")).unwrap(), data);
        assert_eq!(names(&folder), ["x"]);
        get(&set, cache.path()).unwrap();
        assert_eq!(server.ranges(), [None]);
        // A file that is damaged is fetched again.
        cache.file("a-set/x", &data[1..]);
        get(&set, cache.path()).unwrap();
        let mut damaged = data.clone();
        damaged[7] ^= 1;
        cache.file("a-set/x", &damaged);
        get(&set, cache.path()).unwrap();
        assert_eq!(fs::read(folder.join("x")).unwrap(), data);
        assert_eq!(server.ranges(), [None; 3]);
    }

    #[test]
    fn a_broken_connection_is_taken_up_where_it_broke() {
        let data = noise(300_000);
        let (body, cache) = (data.clone(), Folder::new());
        let server = Server::new(move |number, _, from| match (number, from) {
            (0, _) => sends(&body, 100_000),
            (_, Some(from)) => part(&body, from),
            (_, None) => status("400 Bad Request"),
        });
        let set = set(&[server.url.clone() + "/x"], Packing::Plain, vec![file("x", &data)]);
        let folder = get(&set, cache.path()).unwrap();
        assert_eq!(fs::read(folder.join("x")).unwrap(), data);
        assert_eq!(names(&folder), ["x"]);
        let ranges = server.ranges();
        assert_eq!((ranges.len(), ranges[0], ranges[1]), (2, None, Some(100_000)));
    }

    #[test]
    fn what_was_fetched_stays_for_the_next_time() {
        let data = noise(300_000);
        let (body, cache) = (data.clone(), Folder::new());
        let server = Server::new(move |number, _, from| match (number, from) {
            (0, _) => sends(&body, 50_000),
            // Nothing new, as often as it takes to give up.
            (1..=3, _) => status("503 Service Unavailable"),
            (_, from) => part(&body, from.unwrap()),
        });
        let set = set(&[server.url.clone() + "/x"], Packing::Plain, vec![file("x", &data)]);
        let error = get(&set, cache.path()).unwrap_err();
        says(&error, &["/x: found HTTP status 503", "200 or 206"]);
        let folder = cache.path().join("a-set");
        assert_eq!(names(&folder), ["x.0.part"]);
        assert_eq!(fs::read(folder.join("x.0.part")).unwrap(), data[..50_000]);
        get(&set, cache.path()).unwrap();
        assert_eq!(fs::read(folder.join("x")).unwrap(), data);
        assert_eq!(server.ranges()[4..], [Some(50_000)]);
        // A connection that breaks at the same place each time is given up.
        let body = data.clone();
        let server = Server::new(move |_, _, _| sends(&body, 1000));
        let set =
            super::tests::set(&[server.url.clone() + "/y"], Packing::Plain, vec![file("y", &data)]);
        let error = get(&set, cache.path()).unwrap_err();
        says(&error, &["/y: found a connection that", "after 1000 bytes", "300000 bytes"]);
        assert!(!folder.join("y").exists());
    }

    #[test]
    fn a_server_that_ignores_ranges_sends_all_again() {
        let data = noise(100_000);
        let (body, cache) = (data.clone(), Folder::new());
        let server = Server::new(move |number, _, _| {
            sends(&body, if number == 0 { 60_000 } else { body.len() })
        });
        let set = set(&[server.url.clone() + "/x"], Packing::Plain, vec![file("x", &data)]);
        let folder = get(&set, cache.path()).unwrap();
        assert_eq!(fs::read(folder.join("x")).unwrap(), data);
        assert_eq!(server.ranges(), [None, Some(60_000)]);
    }

    #[test]
    fn parts_that_are_whole_or_of_another_file() {
        let data = noise(10_000);
        let answer = |body: Vec<u8>| {
            move |_: usize, _: &str, from: Option<usize>| match from {
                Some(from) if from >= body.len() => {
                    let head = "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n";
                    let range = format!("Content-Range: bytes */{}\r\n", body.len());
                    Answer(head.to_owned() + &range, Vec::new())
                }
                Some(from) => part(&body, from),
                None => sends(&body, body.len()),
            }
        };
        // The whole file was fetched, but not unpacked; too much; another file's beginning.
        let longer = [data.clone(), vec![0; 5]].concat();
        let other = vec![9; 4000];
        let cases: [(&[u8], &[Option<usize>]); 3] = [
            (&data, &[Some(10_000)]),
            (&longer, &[Some(10_005), None]),
            (&other, &[Some(4000), None]),
        ];
        for (old, ranges) in cases {
            let cache = Folder::new();
            cache.file("a-set/x.0.part", old);
            let server = Server::new(answer(data.clone()));
            let set = set(&[server.url.clone() + "/x"], Packing::Plain, vec![file("x", &data)]);
            let folder = get(&set, cache.path()).unwrap();
            assert_eq!(fs::read(folder.join("x")).unwrap(), data);
            assert_eq!(names(&folder), ["x"]);
            assert_eq!(server.ranges(), ranges);
        }
        // A range other than the one asked for is not appended.
        let (cache, body) = (Folder::new(), data.clone());
        cache.file("a-set/x.0.part", &data[..4000]);
        let server = Server::new(move |_, _, from| match from {
            Some(_) => part(&body, 3000),
            None => sends(&body, body.len()),
        });
        let set = set(&[server.url.clone() + "/x"], Packing::Plain, vec![file("x", &data)]);
        let folder = get(&set, cache.path()).unwrap();
        assert_eq!(fs::read(folder.join("x")).unwrap(), data);
        assert_eq!(server.ranges(), [Some(4000), None]);
    }

    #[test]
    fn a_wrong_file_never_gets_its_name() {
        let data = noise(5000);
        let mut wrong = data.clone();
        wrong[4321] ^= 4;
        let cut = gzip(&data)[..1000].to_vec();
        for (body, packing, words) in [
            (wrong.clone(), Packing::Plain, &["checksum: found", "expected"][..]),
            (gzip(&wrong), Packing::Gzip, &["checksum: found"]),
            (data[1..].to_vec(), Packing::Plain, &["length: found 4999 bytes", "5000 bytes"]),
            ([&data[..], &[0]].concat(), Packing::Plain, &["length: found more"]),
            (cut, Packing::Gzip, &["data that does not unpack"]),
            (data.clone(), Packing::Gzip, &["data that does not unpack"]),
            (data.clone(), Packing::TarGzip, &["data that does not unpack"]),
            (vec![0; 2_000_000], Packing::Plain, &["more than 1054826 bytes"]),
        ] {
            let cache = Folder::new();
            let server = Server::new(move |_, _, _| sends(&body, body.len()));
            let set = set(&[server.url.clone() + "/x"], packing, vec![file("x", &data)]);
            let error = get(&set, cache.path()).unwrap_err();
            says(&error, words);
            says(&error, &[&server.url]);
            assert!(names(&cache.path().join("a-set")).is_empty());
            assert_eq!(server.ranges(), [None]);
        }
    }

    #[test]
    fn the_next_address_is_tried() {
        let data = noise(1000);
        let (body, cache) = (data.clone(), Folder::new());
        let server = Server::new(move |_, path, _| match path {
            "/gone/x" => status("404 Not Found"),
            "/wrong/x" => sends(b"wrong", 5),
            _ => sends(&body, body.len()),
        });
        let urls = ["/gone/x", "/wrong/x", "/right/x"].map(|path| server.url.clone() + path);
        let all = set(&urls, Packing::Plain, vec![file("x", &data)]);
        let folder = get(&all, cache.path()).unwrap();
        assert_eq!(names(&folder), ["x"]);
        let cache = Folder::new();
        let gone = set(&urls[..1], Packing::Plain, vec![file("x", &data)]);
        let error = get(&gone, cache.path()).unwrap_err();
        says(&error, &["/gone/x: found HTTP status 404", "expected 200"]);
        assert_eq!(server.ranges().len(), 4, "a 404 is not asked for again");
        let none = set(&[], Packing::Plain, vec![file("x", &data)]);
        says(&get(&none, cache.path()).unwrap_err(), &["addresses to fetch from", "none"]);
        // Nobody listens.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let dead = set(&[format!("http://{port}/x")], Packing::Plain, vec![file("x", &data)]);
        says(&get(&dead, cache.path()).unwrap_err(), &["/x: found no answer", "a connection?"]);
    }

    /// A tar archive whose names are written as they are, good or evil.
    fn tar(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, data) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append(&header, *data).unwrap();
        }
        gzip(&builder.into_inner().unwrap())
    }

    #[test]
    fn of_an_archive_only_the_wanted_files_are_unpacked() {
        use tar::EntryType;
        let (one, two) = (noise(4000), noise(10));
        let archive = tar(&[
            ("../evil", EntryType::Regular, b"evil"),
            ("/sepal-evil", EntryType::Regular, b"evil"),
            ("bin", EntryType::Directory, b""),
            ("./bin/one", EntryType::Regular, &one),
            ("bin/other", EntryType::Regular, b"not wanted"),
            ("bin/two", EntryType::Symlink, b""),
            ("bin/two", EntryType::Regular, &two),
        ]);
        let (body, cache) = (archive.clone(), Folder::new());
        let server = Server::new(move |_, _, _| sends(&body, body.len()));
        let files =
            vec![file("bin/one", &one), SetFile { checksum: None, ..file("bin/two", &two) }];
        let mut wanted = set(&[server.url.clone() + "/a.tar.gz"], Packing::TarGzip, files.clone());
        // A file without a checksum needs one of the archive.
        says(&get(&wanted, cache.path()).unwrap_err(), &["bin/two", "checksum: found none"]);
        wanted.sources[0].checksum = Some(sha256(&archive));
        let folder = get(&wanted, cache.path()).unwrap();
        assert_eq!(
            (names(&folder), names(&folder.join("bin"))),
            (vec!["bin".to_owned()], vec!["one".to_owned(), "two".to_owned()])
        );
        assert_eq!(fs::read(folder.join("bin/one")).unwrap(), one);
        assert_eq!(fs::read(folder.join("bin/two")).unwrap(), two);
        assert_eq!(names(cache.path()), ["a-set"]);
        get(&wanted, cache.path()).unwrap();
        assert_eq!(server.ranges(), [None]);

        let cache = Folder::new();
        wanted.sources[0].checksum = Some(sha256(b"another archive"));
        says(&get(&wanted, cache.path()).unwrap_err(), &["a.tar.gz", "checksum: found"]);
        assert!(names(&cache.path().join("a-set")).is_empty());
        wanted.sources[0].checksum = Some(sha256(&archive));
        wanted.sources[0].files.push(file("bin/three", b"x"));
        says(&get(&wanted, cache.path()).unwrap_err(), &["no such file", "bin/three"]);
        for path in ["../x", "/x", "a/../x", "", "a\\x"] {
            wanted.sources[0].files = vec![file(path, b"x")];
            says(&get(&wanted, cache.path()).unwrap_err(), &["path in it", "a relative path"]);
        }
    }

    #[test]
    fn names_of_addresses() {
        assert_eq!(last("https://a.b/c/d.gz"), "d.gz");
        assert_eq!(last("https://a.b/c/d.gz?x=/y#z"), "d.gz");
        assert_eq!(last("https://a.b/c/"), "c");
    }
}
