/* file.h - the one reader and the one writer of files.
 *
 * The writer makes a file appear whole or not at all: it writes beside the target (".NAME.tmp"), flushes, fsyncs and
 * renames. A target that already holds these very bytes keeps its inode and only gets its time renewed. A written file
 * is never older than the newest file that this process has read, so that make sees it as made from them even if this
 * host's clock is behind the one that wrote the inputs.
 */
#ifndef KM_FILE_H
#define KM_FILE_H

#include "buf.h"
#include "error.h"

#include <stdbool.h>

/* Read all of a file, "-" for stdin, into b up to its ceiling. KM_EXIT_INPUT if it is missing, no regular file or
 * pipe, or larger than the ceiling. */
int file_read(const char *path, struct buf *b, struct error *err);

/* Write len bytes to path as said above; NULL or "-" means stdout. KM_EXIT_ENVIRONMENT on failure. */
int file_write(const char *path, const void *data, size_t len, struct error *err);

/* Renew the time of a file as if file_write had found the same bytes. */
int file_touch(const char *path, struct error *err);

/* Append one line to a file under flock with a single write; a torn last line is first ended. Flushed to disk. */
int file_append_line(const char *path, const char *line, struct error *err);

bool file_exists(const char *path);

/* KM_EXIT_INPUT if path is no folder, or none that can be looked into. */
int file_need_folder(const char *path, struct error *err);

/* mkdir -p. */
int file_make_folder(const char *path, struct error *err);

/* The folder of path ("." if it names none), and `relative` as seen from the folder of the file `from`. An absolute
 * `relative` is returned as it is. The caller frees. */
char *path_folder(const char *path);
char *path_beside(const char *from, const char *relative);

/* True for a relative path with at most two leading "../" and no other "..": what a file of a run may name. */
bool path_is_tame(const char *path);

#endif
