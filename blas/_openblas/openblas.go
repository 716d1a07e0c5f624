package main

/*
#cgo CFLAGS: -O3 -march=native
#cgo LDFLAGS: -lopenblas
#include <pthread.h>

char *openblas_get_corename(void);
int openblas_get_num_threads(void);

// A plain read of memory by n threads, each its own part: what a product can hope for that uses each weight once.
typedef struct { const float *p; long n; float sum; } part;

static void *readPart(void *v) {
	part *p = v;
	float s[128] = {0};
	for (long i = 0; i + 128 <= p->n; i += 128)
		for (int j = 0; j < 128; j++)
			s[j] += p->p[i + j];
	for (int j = 0; j < 128; j++)
		p->sum += s[j];
	return 0;
}

static float readAll(const float *p, long n, int threads) {
	pthread_t id[64];
	part parts[64];
	float sum = 0;
	for (int i = 0; i < threads; i++) {
		parts[i] = (part){p + n / threads * i, n / threads, 0};
		if (i)
			pthread_create(&id[i], 0, readPart, &parts[i]);
	}
	readPart(&parts[0]);
	for (int i = 1; i < threads; i++)
		pthread_join(id[i], 0);
	for (int i = 0; i < threads; i++)
		sum += parts[i].sum;
	return sum;
}
*/
import "C"

import "unsafe"

func coreName() string { return C.GoString(C.openblas_get_corename()) }

func threads() int { return int(C.openblas_get_num_threads()) }

func read(v []float32, threads int) {
	C.readAll((*C.float)(unsafe.Pointer(&v[0])), C.long(len(v)), C.int(threads))
}
