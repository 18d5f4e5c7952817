//! Walks the members of a tar stream block by block, with limits.
//!
//! Header fields are decoded by the `tar` crate; the walk is ours because three things are needed that its iterator
//! does not give: byte offsets to resume from, going on after a damaged header, and bounds on everything a hostile
//! archive can claim (names, extended headers, sizes).

use std::fs::File;
use std::io::{self, BufReader, Read};

use tar::{EntryType, Header};

use super::sample::Problem;

/// Bytes in a tar block.
const BLOCK: u64 = 512;
/// Longest member name taken from a GNU long-name or pax record.
const NAME_LIMIT: u64 = 64 * 1024;

/// A reader that can pass over bytes without returning them.
pub trait Skip: Read {
    /// Passes over `n` bytes; returns how many there were.
    fn skip(&mut self, n: u64) -> io::Result<u64>;
}

impl<S: Skip + ?Sized> Skip for Box<S> {
    fn skip(&mut self, n: u64) -> io::Result<u64> {
        (**self).skip(n)
    }
}

/// Any reader, skipping by reading (gzip, standard input, memory).
pub struct Sequential<R>(pub R);

impl<R: Read> Read for Sequential<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read> Skip for Sequential<R> {
    fn skip(&mut self, n: u64) -> io::Result<u64> {
        io::copy(&mut self.0.by_ref().take(n), &mut io::sink())
    }
}

/// A file, skipping by seeking.
pub struct Seekable {
    file: BufReader<File>,
    at: u64,
    len: u64,
}

impl Seekable {
    /// Reads `file` from its start.
    pub fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file: BufReader::with_capacity(64 * 1024, file),
            at: 0,
            len,
        })
    }
}

impl Read for Seekable {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Skip for Seekable {
    fn skip(&mut self, n: u64) -> io::Result<u64> {
        let n = n.min(self.len.saturating_sub(self.at));
        // bounded by the file length, which the file system keeps below i64::MAX
        self.file.seek_relative(n as i64)?;
        self.at += n;
        Ok(n)
    }
}

/// A regular file inside the archive; its body is next in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Path bytes as stored.
    pub name: Vec<u8>,
    /// Offset of the first header block that belongs to it.
    pub offset: u64,
    /// Body bytes.
    pub size: u64,
}

/// Iterates over the regular files of a tar stream.
///
/// After [`TarMembers::next_member`] gives a member, call [`TarMembers::read_body`] or [`TarMembers::skip_body`]
/// exactly once.
pub struct TarMembers<R> {
    input: R,
    at: u64,
    start: u64, // not yet reached while `at` is below it
    found_ahead: Option<([u8; 512], u64)>,
    ended: bool,
}

impl<R: Skip> TarMembers<R> {
    /// Starts at `offset`, which must be a member border as given by [`Member::offset`] (0 for the first).
    pub fn new(input: R, offset: u64) -> Self {
        Self {
            input,
            at: 0,
            start: offset,
            found_ahead: None,
            ended: false,
        }
    }

    /// Offset of the next block to read.
    pub fn position(&self) -> u64 {
        self.found_ahead
            .as_ref()
            .map_or(self.at.max(self.start), |(_, offset)| *offset)
    }

    /// The next regular file; `None` at the end. After an error of kind `CorruptHeader` reading can go on, after any
    /// other there is nothing more.
    pub fn next_member(&mut self) -> Result<Option<Member>, Problem> {
        let mut long_name: Option<Vec<u8>> = None;
        let mut pax_size: Option<u64> = None;
        let mut first: Option<u64> = None;
        let mut zeros = false;
        loop {
            let Some((block, offset)) = self.next_block()? else {
                return Ok(None);
            };
            if block.iter().all(|&b| b == 0) {
                if zeros {
                    self.ended = true;
                    return Ok(None);
                }
                zeros = true;
                continue;
            }
            let header = Header::from_byte_slice(&block);
            let (true, Ok(stored)) = (valid_checksum(&block), header.entry_size()) else {
                return Err(self.resynchronise(offset));
            };
            zeros = false;
            let first_offset = *first.get_or_insert(offset);
            match header.entry_type() {
                EntryType::GNULongName => {
                    let mut name = self.read_small(stored)?;
                    name.truncate(name.iter().position(|&b| b == 0).unwrap_or(name.len()));
                    long_name = Some(name);
                }
                EntryType::XHeader => {
                    let record = self.read_small(stored)?;
                    for (key, value) in pax_records(&record) {
                        match key {
                            b"path" => long_name = Some(value.to_vec()),
                            b"size" => {
                                pax_size = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok())
                            }
                            _ => {}
                        }
                    }
                }
                EntryType::Regular | EntryType::Continuous => {
                    let name = long_name
                        .take()
                        .unwrap_or_else(|| header.path_bytes().into_owned());
                    return Ok(Some(Member {
                        name,
                        offset: first_offset,
                        size: pax_size.unwrap_or(stored),
                    }));
                }
                _ => {
                    // links, folders, devices, global headers: nothing to read
                    self.skip_exact(padded(pax_size.take().unwrap_or(stored)))?;
                    (long_name, first) = (None, None);
                }
            }
        }
    }

    /// The body of `member`, which must be no larger than the caller allows: check `size` first.
    pub fn read_body(&mut self, member: &Member) -> Result<Vec<u8>, Problem> {
        self.read_exact_padded(member.size)
    }

    /// Passes over the body of `member`.
    pub fn skip_body(&mut self, member: &Member) -> Result<(), Problem> {
        self.skip_exact(padded(member.size))
    }

    fn read_small(&mut self, size: u64) -> Result<Vec<u8>, Problem> {
        if size <= NAME_LIMIT {
            return self.read_exact_padded(size);
        }
        // an extended header this long holds no name worth having
        self.skip_exact(padded(size))?;
        Ok(Vec::new())
    }

    fn read_exact_padded(&mut self, size: u64) -> Result<Vec<u8>, Problem> {
        // grows with what is really there, so a false size cannot reserve memory
        let mut body = Vec::with_capacity(size.min(1 << 20) as usize);
        let got = self
            .input
            .by_ref()
            .take(size)
            .read_to_end(&mut body)
            .map_err(|e| self.failed(e))? as u64;
        self.at += got;
        if got < size {
            return Err(self.truncated());
        }
        let padding = padded(size) - size;
        self.skip_exact(padding)?;
        Ok(body)
    }

    fn skip_exact(&mut self, n: u64) -> Result<(), Problem> {
        let got = self.input.skip(n).map_err(|e| self.failed(e))?;
        self.at += got;
        if got < n { Err(self.truncated()) } else { Ok(()) }
    }

    fn truncated(&mut self) -> Problem {
        self.ended = true;
        Problem::Truncated { at: self.at }
    }

    fn failed(&mut self, source: io::Error) -> Problem {
        self.ended = true;
        Problem::breaks_off(format_args!("byte {}", self.at), source)
    }

    fn next_block(&mut self) -> Result<Option<([u8; 512], u64)>, Problem> {
        if let Some(found) = self.found_ahead.take() {
            return Ok(Some(found));
        }
        if self.ended {
            return Ok(None);
        }
        if self.at < self.start {
            self.skip_exact(self.start - self.at)?;
        }
        let offset = self.at;
        let mut block = [0u8; BLOCK as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
        self.at += filled as u64;
        match filled {
            0 if self.at == 0 => {
                self.ended = true; // an empty archive has its closing zero blocks at least
                Err(Problem::NotTar { at: 0, skipped: 0 })
            }
            0 => {
                self.ended = true; // many writers leave out the closing zero blocks
                Ok(None)
            }
            n if n < block.len() => Err(self.truncated()),
            _ => Ok(Some((block, offset))),
        }
    }

    /// Looks for the next block that is a header for certain (magic and checksum). Without one the rest is lost.
    fn resynchronise(&mut self, bad: u64) -> Problem {
        loop {
            match self.next_block() {
                Ok(Some((block, offset))) if &block[257..262] == b"ustar" && valid_checksum(&block) => {
                    self.found_ahead = Some((block, offset));
                    return Problem::CorruptHeader {
                        at: bad,
                        skipped: offset - bad,
                    };
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    return Problem::NotTar {
                        at: bad,
                        skipped: self.at - bad,
                    };
                }
            }
        }
    }
}

fn padded(size: u64) -> u64 {
    // a size this near to 2^64 is a lie and ends as Truncated either way
    size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

fn valid_checksum(block: &[u8; 512]) -> bool {
    let Ok(stored) = Header::from_byte_slice(block).cksum() else {
        return false;
    };
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(i, &b)| u32::from(if (148..156).contains(&i) { b' ' } else { b }))
        .sum();
    sum == stored
}

/// (key, value) of well-formed pax records `LEN KEY=VALUE\n`; stops at the first malformed one.
fn pax_records(mut data: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut out = Vec::new();
    while let Some(space) = data.iter().position(|&b| b == b' ') {
        let Some(len) = std::str::from_utf8(&data[..space])
            .ok()
            .and_then(|s| s.parse::<usize>().ok())
        else {
            break;
        };
        if len > data.len() || len <= space + 1 || data[len - 1] != b'\n' {
            break;
        }
        let record = &data[space + 1..len - 1];
        if let Some(eq) = record.iter().position(|&b| b == b'=') {
            out.push((&record[..eq], &record[eq + 1..]));
        }
        data = &data[len..];
    }
    out
}

#[cfg(test)]
mod tests;
