// The variants that bench.cu compares, in groups that can be compiled separately. The arguments of addF are S, K, W, T, TH, M, EVERY, POLY;
// those of addB are S, K, T, Q, TH, M, POLY, AHEAD, those of addA are TH, M, AHEAD, and those of addBAsync
// are CH, M and WHOLE.
#ifndef GROUP
#define GROUP 0
#endif
static void addVariants() {
  const std::vector<int> cuts = {1, 8, 16, 32};
#if GROUP == 0 || GROUP == 1
  addF<4, 4, 1, 16, 128, 4, 16, 0>(cuts);
  addF<4, 4, 2, 16, 128, 2, 16, 0>(cuts);
  addF<2, 8, 1, 16, 128, 3, 16, 0>();
#endif
#if GROUP == 0 || GROUP == 2
  addF<8, 2, 1, 32, 128, 4, 16, 0>({1, 4, 8});
  addF<16, 1, 1, 32, 128, 4, 16, 0>();
  addF<4, 4, 1, 16, 64, 8, 16, 0>();
#endif
#if GROUP == 0 || GROUP == 3
  addF<4, 4, 1, 16, 128, 4, 16, 0>();
  addB<4, 4, 16, 16, 128, 2, 0, true>(cuts);
  addB<4, 4, 16, 16, 128, 2, 0, false>();
#endif
#if GROUP == 0 || GROUP == 4
  addF<4, 4, 1, 16, 128, 4, 16, 0>();
  addB<4, 4, 16, 8, 256, 2, 0, false>({1, 16});
  addB<4, 4, 16, 8, 128, 3, 0, true>();
#endif
#if GROUP == 0 || GROUP == 5
  addF<4, 4, 1, 16, 128, 4, 16, 0>();
  addB<4, 4, 16, 8, 128, 4, 0, false>({1, 16});
  addB<4, 4, 16, 8, 128, 3, 0, false>();
#endif
#if GROUP == 0 || GROUP == 6
  addF<4, 4, 1, 16, 128, 4, 16, 0>();
  addB<8, 2, 16, 16, 128, 4, 0, false>({1, 8});
  addB<8, 2, 16, 16, 128, 3, 0, true>();
  addB<16, 1, 16, 16, 128, 4, 0, true>();
#endif
#if GROUP == 0 || GROUP == 9
  addF<4, 4, 1, 16, 128, 4, 16, 0>({1, 8});
  addA<64, 5, 1>({1, 8, 11});         // in use
  addA<64, 5, 1, false>({1, 8});
  addA<64, 5, 0>();                   // the decays of a step among its states: 2% slower, 3% with 3,072 blocks
  addA<64, 5, 2>();                   // decays two steps ahead: no faster
  addA<32, 10, 1>({1, 8});            // blocks of 16 channels: 3% slower, 6% with 3,072 blocks of 32
  addBAsync<64, 2, true>({1, 2, 8, 11});  // two chunks are faster than one piece if blocks for half of the device's room are left
  addBAsync<64, 2, false>({1, 8});        // rows and channels tested: 3% slower
  addBAsync<32, 4, true>();  // half the shared memory: with two blocks on a multiprocessor, as with 100 KB, 1.9 times as slow as 64
#endif
#if GROUP == 0 || GROUP == 8
  addF<4, 4, 1, 16, 128, 4, 16, 8, true, true, true>({1, 4});
  addF<4, 4, 1, 16, 128, 4, 16, 8, false, true, false>({1, 4});
  addF<4, 4, 1, 16, 128, 4, 16, 8, true, false, false>({1, 4});
  addF<16, 4, 1, 16, 128, 2, 16, 0>();
  addF<32, 8, 1, 8, 128, 2, 4, 0>();
  addB<4, 4, 16, 8, 128, 2, 0, true, true, true, true>({1, 4});
  addB<4, 4, 16, 8, 128, 2, 0, false, false, true, false>({1, 4});
  addB<4, 4, 16, 8, 128, 2, 0, true, true, false, false>({1, 4});
  addB<16, 4, 16, 8, 64, 4, 0, false>();
  addB<32, 8, 4, 4, 128, 2, 0, false>();
#endif
}
