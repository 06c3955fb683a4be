//! The functions of the module.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};

use sepal_core::reservoir::Placed;

use crate::learner::{ARENA, CLASSES, Learner, PIXELS, Refused, Room, SAVED};

/// What a function says.
struct Text {
    bytes: [u8; 256],
    len: usize,
}

impl Write for Text {
    /// What does not fit is left out.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        room.iter_mut().zip(text.bytes()).for_each(|(to, byte)| *to = byte);
        self.len = self.bytes.len().min(self.len.saturating_add(text.len()));
        Ok(())
    }
}

struct Page {
    /// From the first call on.
    learner: Option<Learner<'static>>,
    text: Text,
}

/// What there is once.
struct Only<T>(UnsafeCell<T>);

// SAFETY: the module is not built for threads.
unsafe impl<T> Sync for Only<T> {}

static ROOM: Only<Room> = Only(UnsafeCell::new(Room::NEW));
static PAGE: Only<Page> =
    Only(UnsafeCell::new(Page { learner: None, text: Text { bytes: [0; 256], len: 0 } }));

/// The page's state.
fn page<T>(act: impl FnOnce(&mut Page) -> T) -> T {
    // SAFETY: nothing is imported, so no function of the module is called within another, and none
    // of them keeps the reference.
    act(unsafe { &mut *PAGE.0.get() })
}

/// What a call answers.
fn answer(act: impl FnOnce(&mut Learner<'_>) -> Result<i32, Refused>) -> i32 {
    page(|Page { learner, text }| {
        let done = match learner {
            Some(learner) => act(learner),
            None => {
                // SAFETY: a learner is made once, and has the room from then on.
                let room = unsafe { &mut *ROOM.0.get() };
                Learner::new(room).and_then(|new| act(learner.insert(new)))
            }
        };
        done.unwrap_or_else(|refused| {
            text.len = 0;
            // Text takes everything.
            let _ = write!(text, "{refused}");
            -1
        })
    })
}

macro_rules! places {
    ($($(#[$doc:meta])* $name:ident: $of:expr;)*) => { $(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() -> i32 {
            let of: fn(&Room) -> *const u8 = $of;
            answer(|learner| Ok(of(learner.room).addr() as i32))
        }
    )* };
}
places! {
    /// The drawing at hand: `PIXELS` bytes.
    drawing: |room| room.drawing.as_ptr();
    /// What is saved.
    saved: |room| room.saved.as_ptr();
    /// The probability of each class: f32.
    probabilities: |room| room.probabilities.as_ptr().cast();
    /// Four f32 for each drawing, as `picture` fills them.
    places: |room| room.places.as_ptr().cast();
    /// Two u32 for each class: drawings to learn from, and held out.
    counts: |room| room.counts.as_ptr().cast();
    /// SI as f32; held out, right, gained, lost as u32.
    separation: |room| (&raw const room.separation).cast();
}

/// Why a call was refused: bytes of UTF-8.
#[unsafe(no_mangle)]
pub extern "C" fn text() -> i32 {
    page(|page| page.text.bytes.as_ptr().addr() as i32)
}

/// Bytes of that text.
#[unsafe(no_mangle)]
pub extern "C" fn text_len() -> i32 {
    page(|page| page.text.len as i32)
}

/// Bytes that are saved.
#[unsafe(no_mangle)]
pub extern "C" fn saved_len() -> i32 {
    SAVED as i32
}

/// Bytes in which the block is tuned.
#[unsafe(no_mangle)]
pub extern "C" fn arena_len() -> i32 {
    ARENA as i32
}

/// Bytes of all that is kept between calls, the arena in it.
#[unsafe(no_mangle)]
pub extern "C" fn memory_len() -> i32 {
    (size_of::<Room>() + size_of::<Page>()) as i32
}

/// Classes that there is room for.
#[unsafe(no_mangle)]
pub extern "C" fn classes() -> i32 {
    CLASSES as i32
}

/// Forgets everything.
#[unsafe(no_mangle)]
pub extern "C" fn clear() -> i32 {
    answer(|learner| learner.clear().map(|()| 0))
}

/// Forgets what was learnt.
#[unsafe(no_mangle)]
pub extern "C" fn forget() -> i32 {
    answer(|learner| learner.forget().map(|()| 0))
}

/// Keeps the drawing at hand: 0 where it has a place, 1 where it took another's, 2 where it was left.
#[unsafe(no_mangle)]
pub extern "C" fn keep(label: u32) -> i32 {
    answer(|learner| {
        learner.keep(label).map(|placed| match placed {
            Placed::Kept { .. } => 0,
            Placed::Replaced { .. } => 1,
            Placed::Dropped => 2,
        })
    })
}

/// Forgets the drawings of a class.
#[unsafe(no_mangle)]
pub extern "C" fn remove(label: u32) -> i32 {
    answer(|learner| learner.remove(label).map(|()| 0))
}

/// Begins a training.
#[unsafe(no_mangle)]
pub extern "C" fn begin() -> i32 {
    answer(|learner| learner.begin().map(|()| 0))
}

/// One update: how many are left.
#[unsafe(no_mangle)]
pub extern "C" fn step() -> i32 {
    answer(|learner| learner.step().map(|left| left as i32))
}

/// Embeds all drawings again, with the block as it is within a training.
#[unsafe(no_mangle)]
pub extern "C" fn look() -> i32 {
    answer(|learner| learner.look().map(|()| 0))
}

/// The class of the drawing at hand, as its number; 256 more where it is none of them, 255 where no
/// class has a drawing.
#[unsafe(no_mangle)]
pub extern "C" fn predict() -> i32 {
    answer(|learner| {
        let found = learner.predict()?;
        let none = if found.none { 256 } else { 0 };
        Ok(found.nearest.map_or(255, |class| i32::from(class) + none))
    })
}

/// How many drawings are in the picture beside the one at hand.
#[unsafe(no_mangle)]
pub extern "C" fn picture() -> i32 {
    answer(|learner| Ok(learner.picture() as i32))
}

/// Whether something was learnt.
#[unsafe(no_mangle)]
pub extern "C" fn has_learnt() -> i32 {
    answer(|learner| Ok(i32::from(learner.has_learnt())))
}

/// A digest of the block that is in force.
#[unsafe(no_mangle)]
pub extern "C" fn digest() -> u64 {
    page(|page| page.learner.as_ref().map_or(0, Learner::digest))
}

/// Fills `saved`.
#[unsafe(no_mangle)]
pub extern "C" fn save() -> i32 {
    answer(|learner| learner.save().map(|()| 0))
}

/// Goes on with what lies in `saved`.
#[unsafe(no_mangle)]
pub extern "C" fn resume(len: u32) -> i32 {
    answer(|learner| learner.resume(len as usize).map(|()| 0))
}

/// Bytes of a drawing.
#[unsafe(no_mangle)]
pub extern "C" fn drawing_len() -> i32 {
    PIXELS as i32
}

#[cfg(feature = "nopanic")]
#[link(wasm_import_module = "proof")]
unsafe extern "C" {
    fn a_panic_can_be_reached() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    #[cfg(feature = "nopanic")]
    // SAFETY: never linked.
    unsafe {
        a_panic_can_be_reached()
    }
    #[cfg(not(feature = "nopanic"))]
    core::arch::wasm32::unreachable()
}

/// A panic that is reached where `at` is past the end: the proof must be able to fail.
#[cfg(feature = "control")]
#[unsafe(no_mangle)]
pub extern "C" fn control(at: usize) -> u8 {
    page(|page| page.text.bytes[at])
}
