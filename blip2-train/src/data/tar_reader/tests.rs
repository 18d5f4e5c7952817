use super::super::testing::tar_bytes as archive;
use super::*;
use proptest::prelude::*;

fn walk(data: &[u8], offset: u64) -> (Vec<(String, Vec<u8>)>, Vec<&'static str>) {
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    let mut tar = TarMembers::new(Sequential(data), offset);
    loop {
        match tar.next_member() {
            Ok(None) => return (files, problems),
            Ok(Some(m)) => match tar.read_body(&m) {
                Ok(body) => files.push((String::from_utf8_lossy(&m.name).into_owned(), body)),
                Err(p) => problems.push(p.kind()),
            },
            Err(p) => problems.push(p.kind()),
        }
    }
}

#[test]
fn long_names_and_resume_from_any_member() {
    let long = "d/".repeat(120) + "x.jpg";
    let data = archive(&[("a.jpg", b"1"), (&long, &[7; 1000]), ("b.txt", b"")]);
    let (all, problems) = walk(&data, 0);
    assert_eq!(all.len(), 3);
    assert_eq!(all[1].0, long);
    assert!(problems.is_empty());
    let mut tar = TarMembers::new(Sequential(&data[..]), 0);
    for i in 0..3 {
        let member = tar.next_member().unwrap().unwrap();
        tar.skip_body(&member).unwrap();
        assert_eq!(walk(&data, member.offset).0, all[i..], "from member {i}");
    }
}

#[test]
fn pax_path_and_size_are_read() {
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([("path", b"weird/\xc3\xa9.png" as &[u8]), ("size", b"3")])
        .unwrap();
    let mut header = Header::new_ustar();
    header.set_path("short").unwrap();
    header.set_size(3);
    header.set_cksum();
    builder.append(&header, &b"abc"[..]).unwrap();
    let (files, problems) = walk(&builder.into_inner().unwrap(), 0);
    assert_eq!(files, [("weird/é.png".to_owned(), b"abc".to_vec())]);
    assert!(problems.is_empty());
}

#[test]
fn a_damaged_header_costs_one_member() {
    let mut data = archive(&[("a.jpg", &[1; 600]), ("b.jpg", &[2; 600]), ("c.jpg", &[3; 600])]);
    data[512 + 1024 + 10] ^= 0xff; // in b's header
    let (files, problems) = walk(&data, 0);
    assert_eq!(
        files.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(),
        ["a.jpg", "c.jpg"]
    );
    assert_eq!(problems, ["corrupt_header"]);
}

#[test]
fn truncation_is_reported_and_a_missing_trailer_is_not() {
    let data = archive(&[("a.jpg", &[1; 600]), ("b.jpg", &[2; 600])]);
    let (files, problems) = walk(&data[..512 + 1024 + 512 + 100], 0);
    assert_eq!((files.len(), problems), (1, vec!["truncated"]));
    let (files, problems) = walk(&data[..2 * (512 + 1024)], 0);
    assert_eq!((files.len(), problems.len()), (2, 0));
}

#[test]
fn false_sizes_neither_panic_nor_reserve_memory() {
    for size in [u64::MAX, u64::MAX - 511, 1 << 62, 1 << 40] {
        let mut header = Header::new_gnu();
        header.set_path("a.jpg").unwrap();
        header.set_size(size);
        header.set_cksum();
        let mut data = header.as_bytes().to_vec();
        data.extend([0; 2048]);
        let (files, problems) = walk(&data, 0);
        assert!(files.is_empty());
        assert_eq!(problems, ["truncated"]);
        for kind in [EntryType::GNULongName, EntryType::XHeader, EntryType::Directory] {
            header.set_entry_type(kind);
            header.set_cksum();
            data[..512].copy_from_slice(header.as_bytes());
            assert_eq!(walk(&data, 0).1, ["truncated"]);
        }
    }
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        flips in prop::collection::vec((0usize..6000, any::<u8>()), 0..20),
        cut in 0usize..6000, offset in 0u64..7000, fix in any::<bool>(),
    ) {
        let long = "n".repeat(300);
        let mut data = archive(&[("a.jpg", &[1; 600]), (&long, b"x"), ("a.json", b"{}"), ("b.png", &[5; 20])]);
        for (at, value) in flips {
            let at = at % data.len();
            data[at] = value;
        }
        if fix {
            // repaired checksums let the damage through to the size, name and type fields
            for block in data.chunks_exact_mut(512) {
                if &block[257..262] == b"ustar" {
                    let mut header = Header::from_byte_slice(block).clone();
                    header.set_cksum();
                    block.copy_from_slice(header.as_bytes());
                }
            }
        }
        data.truncate(cut.max(1));
        let (files, _) = walk(&data, offset / 512 * 512);
        prop_assert!(files.len() <= data.len() / 512 + 1);
    }
}
