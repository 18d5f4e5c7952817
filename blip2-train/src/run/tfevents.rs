//! TensorBoard event files: scalars only. The format is TFRecord framing around `tensorflow.Event`
//! messages, of which three fields are needed, so the protobuf is written by hand.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::crc32c::masked;

/// Appends scalars to one event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
}

impl EventWriter {
    /// A new file in `folder` (made if absent). Every start of a run has its own; TensorBoard joins them
    /// and drops steps that were repeated after `first_step`.
    pub fn create(folder: &Path, first_step: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let seconds = now().floor();
        // a second start within the same second must not overwrite the first
        let mut file = None;
        for attempt in 0..1000 {
            let name = format!("events.out.tfevents.{seconds:.0}.blip2.{attempt}");
            let path = folder.join(name);
            match OpenOptions::new().write(true).create_new(true).open(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => {
                    file = Some(other?);
                    break;
                }
            }
        }
        let file = file.ok_or_else(|| io::Error::from(io::ErrorKind::AlreadyExists))?;
        let mut writer = Self { file };
        let mut version = Message::default();
        version.double(1, now());
        version.bytes(3, b"brain.Event:2");
        writer.record(&version.0)?;
        // SessionLog { status: START }: steps from here on replace older ones
        let mut session = Message::default();
        session.varint(1, 1);
        let mut start = Message::default();
        start.double(1, now());
        start.varint(2, first_step);
        start.bytes(7, &session.0);
        writer.record(&start.0)?;
        Ok(writer)
    }

    /// One value per tag at `step`.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> io::Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let mut entry = Message::default();
            entry.bytes(1, tag.as_bytes());
            entry.float(2, value as f32);
            summary.bytes(1, &entry.0);
        }
        let mut event = Message::default();
        event.double(1, now());
        event.varint(2, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    /// Length, its checksum, data, its checksum; in one write, so that a kill leaves at most one torn record.
    fn record(&mut self, data: &[u8]) -> io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked(data).to_le_bytes());
        self.file.write_all(&record)
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |duration| duration.as_secs_f64())
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.raw_varint(field << 3 | wire);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_and_checksummed() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 3).unwrap();
        writer.scalars(300, [("train/loss", 0.5), ("lr", 1e-4)]).unwrap();
        let path = std::fs::read_dir(folder.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let bytes = std::fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut records = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]).to_le_bytes());
            let data = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked(data).to_le_bytes());
            records.push(data.to_vec());
            rest = &rest[16 + length..];
        }
        assert_eq!(records.len(), 3);
        assert!(records[0].ends_with(b"\x1a\x0dbrain.Event:2"));
        let scalars = &records[2];
        assert_eq!(scalars[0], 0x09); // field 1, double
        assert_eq!(scalars[9..12], [0x10, 0xac, 0x02]); // field 2, varint 300
        let summary = &scalars[12..];
        assert_eq!(summary[..2], [0x2a, (summary.len() - 2) as u8]); // field 5, message
        let entry = &summary[2..];
        assert_eq!(entry[..4], [0x0a, 17, 0x0a, 10]);
        assert_eq!(&entry[4..14], b"train/loss");
        assert_eq!(entry[14], 0x15); // field 2, float
        assert_eq!(entry[15..19], 0.5f32.to_le_bytes());
    }

    #[test]
    fn two_starts_in_one_second_do_not_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        EventWriter::create(folder.path(), 0).unwrap();
        EventWriter::create(folder.path(), 0).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
