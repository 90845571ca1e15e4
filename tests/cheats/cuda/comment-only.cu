/* Here would be the kernel. */
// and here
