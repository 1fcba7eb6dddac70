//! What stands between damaged files and the crate that decodes them: it allocates what sizes in the file say, and
//! panics at some of what it does not expect.

use std::any::Any;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use bytes::Bytes;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length, SerializedPageReader};

use crate::data::formats::Parsed;

/// Bytes that one byte of a page becomes at most: Snappy's shortest copy of 64 bytes takes 3.
const MOST_GROWTH: i64 = 22;

/// Bytes of a dictionary that one of its values takes at least: an i32, or the length of a string.
const LEAST_ENTRY: u64 = 4;

/// A file of pages, whose headers are looked at before anybody believes them.
pub struct PagesFile(pub File);

impl Length for PagesFile {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for PagesFile {
    type T = Header;

    fn get_read(&self, start: u64) -> Result<Header> {
        Ok(Header { bytes: self.0.get_read(start)?, is_checked: false })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.0.get_bytes(start, length)
    }
}

/// Bytes from the beginning of a page header on.
pub struct Header {
    bytes: BufReader<File>,
    is_checked: bool,
}

impl Read for Header {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // Only who reads reads a header: for a page's content bytes are got.
        if !self.is_checked {
            check_sizes(self.bytes.fill_buf()?).map_err(io::Error::other)?;
            self.is_checked = true;
        }
        self.bytes.read(into)
    }
}

/// Checks the page size that is allocated before anything is decompressed, up to 2 GiB.
fn check_sizes(header: &[u8]) -> Parsed<()> {
    let [_, n_decoded, n_bytes] = first_integers(header).ok_or("a page has no header")?;
    if n_decoded < 0 || n_bytes < 0 || n_decoded > MOST_GROWTH * n_bytes {
        return Err(format!("a page of {n_bytes} bytes is said to hold {n_decoded}"));
    }
    Ok(())
}

/// What a page header begins with, in Thrift's compact protocol: its kind, its bytes when decompressed, its bytes in
/// the file.
fn first_integers(header: &[u8]) -> Option<[i64; 3]> {
    /// The field behind the last one, an i32; what follows is a zigzag number of 7 bits a byte.
    const NEXT_I32: u8 = 0x15;
    const LONGEST: usize = 5;
    let (mut integers, mut rest) = ([0; 3], header);
    for integer in &mut integers {
        let (&NEXT_I32, behind) = rest.split_first()? else { return None };
        let last = behind.iter().take(LONGEST).position(|byte| byte & 0x80 == 0)?;
        let (number, behind) = behind.split_at(last + 1);
        let bits = number.iter().rev().fold(0, |bits, byte| bits << 7 | i64::from(byte & 0x7f));
        *integer = (bits >> 1) ^ -(bits & 1);
        rest = behind;
    }
    Some(integers)
}

/// The pages of one column chunk, of which a dictionary has no more values than fit into it.
pub struct Pages(pub SerializedPageReader<PagesFile>);

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.0.get_next_page()?;
        if let Some(Page::DictionaryPage { buf, num_values, .. }) = &page
            && u64::from(*num_values) * LEAST_ENTRY > buf.len() as u64
        {
            let n_bytes = buf.len();
            let problem =
                format!("a dictionary of {n_bytes} bytes is said to hold {num_values} values");
            return Err(ParquetError::General(problem));
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.0.skip_next_page()
    }
}

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs what decodes a file. A panic in there, which only a damaged file makes, is an error and not the program's end.
///
/// The panic hook would still print a message and a hint at backtraces. It is the whole process's, so it is replaced
/// once, by one that passes all on to its predecessor but what happens in here, on this thread.
pub fn guarded<T>(decode: impl FnOnce() -> Parsed<T>) -> Parsed<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                usual(info);
            }
        }));
    });
    IS_GUARDED.set(true);
    // Whoever gets the error drops what was half filled.
    let outcome = panic::catch_unwind(AssertUnwindSafe(decode));
    IS_GUARDED.set(false);
    outcome.unwrap_or_else(|panic| {
        Err(format!("is damaged, and cannot be decoded: {}", first_line(&*panic)))
    })
}

/// The beginning of a panic's message.
fn first_line(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.and_then(|text| text.lines().next()).unwrap_or("for no reason that it gives")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_headers() {
        // A dictionary (2) of 300 bytes, 40 in the file.
        let header = [0x15, 4, 0x15, 0xd8, 0x04, 0x15, 80, 0x2c];
        assert_eq!(first_integers(&header), Some([2, 300, 40]));
        assert_eq!(check_sizes(&header), Ok(()));
        assert_eq!(first_integers(&[0x15, 1, 0x15, 3, 0x15, 5]), Some([-1, -2, -3]));
        // The largest i32.
        let huge = [0x15, 0, 0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0x15, 80];
        assert_eq!(first_integers(&huge), Some([0, i64::from(i32::MAX), 40]));
        assert!(check_sizes(&huge).unwrap_err().contains("40 bytes is said to hold 2147483647"));
        for end in 0..6 {
            assert_eq!(first_integers(&header[..end]), None, "{end}");
        }
        assert_eq!(first_integers(&[0x15, 0, 0x25, 0, 0x15, 0]), None);
        assert_eq!(first_integers(&[0x15, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), None);
    }

    #[test]
    fn panics_are_errors() {
        assert_eq!(guarded(|| Ok(1)), Ok(1));
        assert_eq!(guarded::<()>(|| Err("no".to_owned())), Err("no".to_owned()));
        let lines: Parsed<()> = guarded(|| panic!("{} lines\nof it", 2));
        assert!(lines.unwrap_err().ends_with("cannot be decoded: 2 lines"));
        let other: Parsed<()> = guarded(|| panic::panic_any(3));
        assert!(other.unwrap_err().ends_with("for no reason that it gives"));
        assert!(!IS_GUARDED.get());
    }
}
