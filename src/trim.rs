//! Gives back what only start-up needed, so that a sidecar that waits costs little.
//!
//! Two calls that the compiler cannot check; everything else in onehop forbids `unsafe`.
#![allow(
    unsafe_code,
    reason = "madvise and the allocator's own purge have no safe form; the notes below say why they hold"
)]

use std::ffi::c_void;

/// Drops this program's code from its resident memory and returns the allocator's free pages. What is still in use comes
/// back from the page cache with its next use.
pub fn trim() {
    purge();
    let (Ok(maps), Ok(exe)) = (std::fs::read_to_string("/proc/self/maps"), std::env::current_exe()) else { return };
    for (start, length) in maps.lines().filter_map(|line| code(line, exe.to_str()?)) {
        // SAFETY: the range is one whole mapping of this program's own file, executable and never writable, so each of its
        // pages is the file's: dropped ones are mapped anew from the file when they are next touched. Nothing is unmapped.
        let _ = unsafe { rustix::mm::madvise(start as *mut c_void, length, rustix::mm::Advice::LinuxDontNeed) };
    }
}

/// Returns the free pages of the calling thread's heap to the system.
pub fn purge() {
    // SAFETY: takes no pointer; any thread may call it at any time.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Start and length of a line of `/proc/self/maps` if it maps the code of `exe`: `start-end r-xp offset dev inode path`.
fn code(line: &str, exe: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    if words.next()? != "r-xp" || words.nth(3)? != exe {
        return None;
    }
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_code_of_the_program_itself() {
        let code = |line| code(line, "/usr/bin/onehop");
        assert_eq!(code("1000-3000 r-xp 00001000 fe:00 17   /usr/bin/onehop"), Some((0x1000, 0x2000)));
        assert_eq!(
            code("1000-3000 r--p 00001000 fe:00 17   /usr/bin/onehop"),
            None,
            "relocated data is not the file's"
        );
        assert_eq!(code("1000-3000 rw-p 00001000 fe:00 17   /usr/bin/onehop"), None);
        assert_eq!(code("1000-3000 r-xp 00001000 fe:00 17   /usr/lib/libc.so.6"), None);
        assert_eq!(code("1000-3000 r-xp 00000000 00:00 0"), None);
        assert_eq!(code("nonsense"), None);
    }

    #[test]
    fn the_program_runs_on() {
        trim();
        assert_eq!((1..=10).sum::<u32>(), 55);
    }
}
