//! TensorBoard's event files: records of a length, a payload and their checksums (TFRecord), each payload an `Event`
//! message of TensorFlow's `event.proto`, of which scalars are all that a training log needs.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::train::LogLine;
use crate::{Error, Result};

/// An event file that grows.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a file of its own in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let seconds = wall_time();
        let id = std::process::id();
        let path = folder.join(format!("events.out.tfevents.{}.frostline.{id}", seconds as u64));
        let file = File::options().append(true).create(true).open(&path);
        let mut events = EventFile { file: file.map_err(|e| Error::io(&path, e))?, path };
        let mut version = event(seconds, 0);
        bytes_field(&mut version, 3, b"brain.Event:2");
        events.append(&version)?;
        Ok(events)
    }

    /// Writes the scalars of a line, under transformers' tags.
    ///
    /// # Errors
    /// When the disk is full, say.
    pub fn write(&mut self, line: &LogLine) -> Result<()> {
        let (step, scalars) = scalars(line);
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut message = Vec::new();
            bytes_field(&mut message, 1, tag.as_bytes());
            key(&mut message, 2, FIXED32);
            message.extend((value as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &message);
        }
        let mut message = event(wall_time(), step);
        bytes_field(&mut message, 5, &summary);
        self.append(&message)
    }

    fn append(&mut self, payload: &[u8]) -> Result<()> {
        let written = self.file.write_all(&record(payload));
        written.map_err(|e| Error::io(&self.path, e))
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A line's step, and what is drawn of it.
fn scalars(line: &LogLine) -> (u64, Vec<(String, f64)>) {
    let named = |name: &str, value: f64| (name.to_owned(), value);
    match line {
        LogLine::Step { step, epoch, loss, grad_norm, learning_rate } => {
            let mut all = vec![
                named("train/loss", f64::from(*loss)),
                named("train/learning_rate", *learning_rate),
                named("train/epoch", *epoch),
            ];
            all.extend(grad_norm.map(|norm| named("train/grad_norm", f64::from(norm))));
            (*step, all)
        }
        LogLine::Evaluation { step, eval_loss, eval_runtime, eval, .. } => {
            let mut all =
                vec![named("eval/loss", *eval_loss), named("eval/runtime", *eval_runtime)];
            for task in &eval.tasks {
                let of = |what: &str| format!("eval/{}_{what}", task.task);
                all.push((of("loss"), task.loss));
                let shares = [
                    ("accuracy", task.confusion.accuracy()),
                    ("macro_f1", task.confusion.macro_f1()),
                    ("mcc", task.confusion.mcc()),
                ];
                let known = shares.into_iter().filter_map(|(what, value)| Some((of(what), value?)));
                all.extend(known);
            }
            (*step, all)
        }
        LogLine::Freeze { step, trainable_parameters, flops_share, .. } => (
            *step,
            vec![
                named("train/trainable_parameters", *trainable_parameters as f64),
                named("train/flops_share", *flops_share),
            ],
        ),
    }
}

/// A record: length, its checksum, payload, its checksum.
fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(payload);
    bytes.extend(masked_crc(payload).to_le_bytes());
    bytes
}

/// TFRecord's checksum: a CRC of data that hold CRCs themselves would be weak, so it is turned and shifted.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Protocol buffers' kinds of fields.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// An `Event` with its time and step.
fn event(seconds: f64, step: u64) -> Vec<u8> {
    let mut message = Vec::new();
    key(&mut message, 1, FIXED64);
    message.extend(seconds.to_le_bytes());
    key(&mut message, 2, VARINT);
    varint(&mut message, step);
    message
}

fn key(message: &mut Vec<u8>, field: u8, kind: u8) {
    message.push(field << 3 | kind);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn bytes_field(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    key(message, field, BYTES);
    varint(message, bytes.len() as u64);
    message.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What TensorFlow's own writer gives for a record of the bytes "abc".
    #[test]
    fn records_are_those_of_tfrecord() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
        let bytes = record(b"abc");
        assert_eq!(bytes.len(), 8 + 4 + 3 + 4);
        assert_eq!(bytes[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[12..15], b"abc");
        let crc = u32::from_le_bytes([bytes[15], bytes[16], bytes[17], bytes[18]]);
        let unmasked = crc.wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked, 0x364b_3fb7, "CRC-32C of abc");
    }

    #[test]
    fn numbers_take_seven_bits_a_byte() {
        for (value, expected) in [(0, vec![0]), (127, vec![127]), (300, vec![0xAC, 2])] {
            let mut message = Vec::new();
            varint(&mut message, value);
            assert_eq!(message, expected);
        }
    }
}
