/* version.h - the version that every program prints with -V and writes into what it makes. */
#ifndef KM_VERSION_H
#define KM_VERSION_H

#define KM_VERSION "0.1.0"

#endif
