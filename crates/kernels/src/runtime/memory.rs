//! Advice to the operating system about large buffers.

#![allow(unsafe_code)]

/// Asks for huge pages under a buffer that is about to be filled: weights are streamed once per token, and with 4 KiB
/// pages the page walks cost a tenth of the bandwidth. Advice only: nothing is lost where it is not taken.
pub(crate) fn advise_huge_pages(bytes: &[u8]) {
    const HUGE_PAGE: usize = 2 << 20;
    #[cfg(target_os = "linux")]
    {
        let start = (bytes.as_ptr() as usize).next_multiple_of(HUGE_PAGE);
        let end = (bytes.as_ptr() as usize + bytes.len()) / HUGE_PAGE * HUGE_PAGE;
        if start < end {
            // SAFETY: the range lies inside of `bytes`, and this advice does not change what the memory holds.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (bytes, HUGE_PAGE);
}
