//! Folders of images, one folder a class: `root/CLASS/*.png` (or `.jpg`, `.jpeg`).

use std::io::BufReader;
use std::path::{Path, PathBuf};

use image::imageops::FilterType;
use image::{DynamicImage, ImageReader, Limits};
use sepal_core::shape::Shape;

use super::{Color, DataError, Dataset, Images, Samples};

/// Rows and columns of the largest image decoded.
const SIDE: u32 = 16_384;
/// Bytes that decoding one image may take.
const DECODED: u64 = 1 << 30;

/// The names of the class folders in `root`, sorted by bytes. Hidden folders are none.
///
/// # Errors
/// A folder that cannot be read, a name that is no UTF-8, and no class folders.
pub fn classes(root: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for path in entries(root)? {
        if path.is_dir() {
            names.push(name(&path)?.to_owned());
        }
    }
    if names.is_empty() {
        let expected = "a folder for each class";
        return Err(DataError::content(root, "folder", "no folders in it", expected));
    }
    Ok(names)
}

/// Reads all images of the class folders of `root`, class by class and file by file in the order
/// of their names. `names` are the classes; where it is empty they are [`classes`] of `root`.
///
/// # Errors
/// Those of [`classes`], a class folder that is not among the names, a file that ends like an
/// image but is none or exceeds the limits (16,384 pixels a side, 1 GiB), images of different
/// sizes where no size is given, and no images.
pub fn load(root: &Path, names: &[String], options: Images) -> Result<Dataset, DataError> {
    let found = classes(root)?;
    let names = if names.is_empty() { found.clone() } else { names.to_vec() };
    if options.size.is_some_and(|(h, w)| h == 0 || w == 0 || h > SIDE || w > SIDE) {
        let found = format!("{:?}", options.size.unwrap_or_default());
        let expected = format!("1 to {SIDE} rows and columns");
        return Err(DataError::content(root, "size asked for", found, expected));
    }
    let mut pixels = Vec::new();
    let mut labels = Vec::new();
    let mut first: Option<(PathBuf, (u32, u32))> = None;
    for class in &found {
        let place = names.iter().position(|name| name == class);
        let Some(label) = place.and_then(|place| u16::try_from(place).ok()) else {
            let expected = format!("one of the classes {}", names.join(", "));
            return Err(DataError::content(root, "class folder", format!("`{class}`"), expected));
        };
        for path in entries(&root.join(class))? {
            if !is_image(&path) {
                continue;
            }
            let image = decode(&path)?;
            let size = (image.height(), image.width());
            match &first {
                None => first = Some((path.clone(), options.size.unwrap_or(size))),
                Some((other, expected)) if options.size.is_none() && size != *expected => {
                    let found = format!("{} x {} pixels", size.0, size.1);
                    let (h, w) = expected;
                    let expected =
                        format!("{h} x {w} as in {}, or a size to resize to", other.display());
                    return Err(DataError::content(&path, "size", found, expected));
                }
                Some(_) => {}
            }
            append(&mut pixels, image, options);
            labels.push(label);
        }
    }
    let Some((_, (h, w))) = first else {
        return Err(DataError::content(root, "class folders", "no images", "PNG or JPEG files"));
    };
    let c = match options.color {
        Color::Gray => 1,
        Color::Rgb => 3,
    };
    pixels.shrink_to_fit();
    Dataset::new(Shape::new(1, c, h, w), Samples::U8(pixels), labels, names)
        .map_err(|error| error.of(root))
}

/// What lies in a folder, sorted by name, without hidden entries.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |error| DataError::io(folder, "could not be listed", error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> Result<&str, DataError> {
    path.file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| DataError::content(path, "name", "bytes that are no UTF-8", "UTF-8 text"))
}

/// Whether the name ends like an image's.
fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
    path.is_file() && ["png", "jpg", "jpeg"].iter().any(|e| extension.eq_ignore_ascii_case(e))
}

/// Decodes by content: the ending may be the other format's.
fn decode(path: &Path) -> Result<DynamicImage, DataError> {
    let failed = |error| DataError::io(path, "could not be opened", error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut reader = ImageReader::new(BufReader::new(file))
        .with_guessed_format()
        .map_err(|error| DataError::io(path, "could not be read", error))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE);
    limits.max_image_height = Some(SIDE);
    limits.max_alloc = Some(DECODED);
    reader.limits(limits);
    reader.decode().map_err(|error| {
        let expected = "a whole PNG or JPEG image within the limits";
        DataError::content(path, "image", format!("one that does not decode ({error})"), expected)
    })
}

/// Appends an image as planes.
fn append(pixels: &mut Vec<u8>, image: DynamicImage, options: Images) {
    let image = match options.size {
        Some((h, w)) if (image.height(), image.width()) != (h, w) => {
            image.resize_exact(w, h, FilterType::Triangle)
        }
        _ => image,
    };
    match options.color {
        Color::Gray => pixels.extend_from_slice(image.into_luma8().as_raw()),
        Color::Rgb => {
            let image = image.into_rgb8();
            for channel in 0..3 {
                pixels.extend(image.as_raw().iter().skip(channel).step_by(3));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Folder, says};
    use super::*;
    use image::{GrayImage, ImageFormat, RgbImage};

    fn png(w: u32, h: u32, pixels: &[u8]) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let image = RgbImage::from_raw(w, h, pixels.to_vec()).unwrap();
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn classes_and_files_come_in_the_order_of_their_names() {
        let folder = Folder::new();
        folder.file("b/2.png", &png(2, 1, &[1, 2, 3, 4, 5, 6]));
        folder.file("b/1.PNG", &png(2, 1, &[7, 8, 9, 10, 11, 12]));
        // The content decides: a PNG file under a JPEG's name.
        folder.file("a/x.jpg", &png(2, 1, &[0; 6]));
        folder.file("a/readme.txt", b"no image");
        folder.file("a/.hidden.png", b"no image");
        folder.file(".git/x.png", b"no image");
        folder.file("list.png", b"no class");
        let set = load(folder.path(), &[], Images::default()).unwrap();
        assert_eq!(set.shape(), Shape::new(1, 3, 1, 2));
        assert_eq!((set.names(), set.labels()), (&["a".into(), "b".into()][..], &[0, 1, 1][..]));
        let planes = [0, 0, 0, 0, 0, 0, 7, 10, 8, 11, 9, 12, 1, 4, 2, 5, 3, 6];
        assert_eq!(set.samples(), &Samples::U8(planes.to_vec()));
        let names = ["b".to_owned(), "c".to_owned(), "a".to_owned()];
        let set = load(folder.path(), &names, Images::default()).unwrap();
        assert_eq!((set.names(), set.labels()), (&names[..], &[2, 0, 0][..]));
        let error = load(folder.path(), &names[..2], Images::default()).unwrap_err();
        says(&error, &["class folder", "`a`", "b, c"]);
    }

    #[test]
    fn gray_jpeg_and_resizing() {
        let folder = Folder::new();
        let mut jpeg = std::io::Cursor::new(Vec::new());
        GrayImage::from_pixel(8, 4, image::Luma([200]))
            .write_to(&mut jpeg, ImageFormat::Jpeg)
            .unwrap();
        folder.file("a/1.jpeg", &jpeg.into_inner());
        folder.file("a/2.png", &png(3, 3, &[100; 27]));
        let options = Images { size: Some((2, 5)), color: Color::Gray };
        let set = load(folder.path(), &[], options).unwrap();
        assert_eq!(set.shape(), Shape::new(1, 1, 2, 5));
        let Samples::U8(pixels) = set.samples() else { panic!("bytes") };
        assert_eq!(pixels.len(), 20);
        assert!(pixels[..10].iter().all(|&p| p.abs_diff(200) <= 2), "{pixels:?}");
        assert!(pixels[10..].iter().all(|&p| p.abs_diff(100) <= 1), "{pixels:?}");
        let error = load(folder.path(), &[], Images::default()).unwrap_err();
        says(&error, &["2.png", "3 x 3 pixels", "4 x 8 as in", "1.jpeg", "resize"]);
        let options = Images { size: Some((0, 5)), ..options };
        says(&load(folder.path(), &[], options).unwrap_err(), &["size asked for", "(0, 5)"]);
    }

    #[test]
    fn broken_images_and_empty_folders_are_refused() {
        let folder = Folder::new();
        let error = load(folder.path(), &[], Images::default()).unwrap_err();
        says(&error, &["no folders in it", "a folder for each class"]);
        folder.file("a/x.txt", b"");
        let error = load(folder.path(), &[], Images::default()).unwrap_err();
        says(&error, &["no images", "PNG or JPEG"]);
        let whole = png(2, 2, &[9; 12]);
        for end in 0..whole.len() {
            folder.file("a/x.png", &whole[..end]);
            // The last chunk only says that the file ends.
            match load(folder.path(), &[], Images::default()) {
                Ok(set) => assert_eq!(set.samples(), &Samples::U8(vec![9; 12]), "{end}"),
                Err(error) => says(&error, &["x.png", "image", "expected"]),
            }
        }
        let mut huge = whole;
        huge[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        folder.file("a/x.png", &huge);
        let error = load(folder.path(), &[], Images::default()).unwrap_err();
        says(&error, &["x.png", "image"]);
        let error = load(&folder.path().join("none"), &[], Images::default()).unwrap_err();
        says(&error, &["none", "could not be listed"]);
    }
}
