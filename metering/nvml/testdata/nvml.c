// A small libnvidia-ml.so.1 for tests, so that the real cgo path runs without a
// GPU. It is not NVIDIA's and drives nothing. The test says what its GPUs do in
// a control file, which every call reads again:
//
//   gpus N             number of GPUs
//   epoch N            of the driver; a new one voids the library until nvmlInit
//   lost MASK          GPUs that fell off the bus
//   reset MASK         GPUs that need a reset
//   unknown MASK       GPUs that answer with an unknown error
//   stall MASK         GPUs on which calls do not return
//   bare MASK          GPUs that support nothing optional
//   swap MASK          GPUs that answer with another UUID
//   mig MASK           GPUs in MIG mode, two slices each
//   deaf MASK          GPUs whose event sets, as they are now, hear nothing any more
//   refuse MASK        GPUs that refuse to register for events, for now
//   acting MASK        GPUs that ask for the recovery action
//   action N           which one, field 230
//   upgraded N         the kernel module is another version than this library
//   energy N           millijoules, of every GPU
//   soft, hard, brake  nanoseconds of throttling
//   util N, memory N, processes N
//   xid GPU CODE GI CI an error, delivered once to every event set of the GPU
//
// Built with -DOLD it lacks the symbols that an older driver lacks. Built with -DINSTANT it reads no file and waits for
// nothing: eight healthy GPUs whose energy grows, for a benchmark.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NVML_NO_UNVERSIONED_FUNC_DEFS 1
#include "nvml.h"

#define GPUS 8
#define SLICES 2
#ifdef INSTANT
#define ERRORS 1
#else
#define ERRORS 256
#endif
#define SETS 256

// A handle points into these. Slices come after the GPUs.
struct nvmlDevice_st { unsigned gpu, slice; int mig; char uuid[41]; };
static struct nvmlDevice_st gpus[GPUS], slices[GPUS][SLICES];

struct nvmlEventSet_st { int used, gpu, deaf; unsigned seen; };
static struct nvmlEventSet_st sets[SETS];

struct error { unsigned gpu; unsigned long long code; unsigned gi, ci; };

struct control {
    unsigned long long gpus, epoch, lost, reset, unknown, stall, bare, swap, mig, deaf, refuse, acting, action, upgraded;
    unsigned long long energy, soft, hard, brake, util, memory, processes;
    struct error errors[ERRORS];
    unsigned count;
};

static unsigned long long opened; // the epoch at nvmlInit, plus one; 0 before

#ifdef INSTANT
static void control(struct control *c) {
    static unsigned long long energy;
    *c = (struct control){.gpus = GPUS, .util = 97, .memory = 61ull << 30, .processes = 1};
    c->energy = __atomic_add_fetch(&energy, 10000, __ATOMIC_RELAXED);
}
#else
static void control(struct control *c) {
    memset(c, 0, sizeof *c);
    const char *path = getenv("GPUPAY_NVML_CONTROL");
    FILE *f = path ? fopen(path, "r") : NULL;
    if (!f) {
        fprintf(stderr, "test library: no control file\n");
        abort();
    }
    char line[256];
    while (fgets(line, sizeof line, f)) {
        char key[32];
        unsigned long long v[4] = {0, 0, 0xFFFFFFFF, 0xFFFFFFFF};
        if (sscanf(line, "%31s %llu %llu %llu %llu", key, &v[0], &v[1], &v[2], &v[3]) < 2) continue;
#define FIELD(name) if (!strcmp(key, #name)) c->name = v[0]
        FIELD(gpus); FIELD(epoch); FIELD(lost); FIELD(reset); FIELD(unknown); FIELD(stall); FIELD(bare); FIELD(swap); FIELD(mig);
        FIELD(deaf); FIELD(refuse); FIELD(acting); FIELD(action); FIELD(upgraded);
        FIELD(energy); FIELD(soft); FIELD(hard); FIELD(brake); FIELD(util); FIELD(memory); FIELD(processes);
        if (!strcmp(key, "xid") && c->count < ERRORS)
            c->errors[c->count++] = (struct error){v[0], v[1], v[2], v[3]};
    }
    fclose(f);
}
#endif

static nvmlReturn_t ready(struct control *c) {
    control(c);
    if (c->upgraded) return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    return opened == c->epoch + 1 ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

// enter is how every call on a device begins.
static nvmlReturn_t enter(nvmlDevice_t d, struct control *c) {
    nvmlReturn_t ret = ready(c);
    if (ret != NVML_SUCCESS) return ret;
    unsigned long long bit = 1ull << d->gpu;
    while (c->stall & bit) {
        usleep(500);
        control(c);
    }
    if (c->lost & bit) return NVML_ERROR_GPU_IS_LOST;
    if (c->reset & bit) return NVML_ERROR_RESET_REQUIRED;
    if (c->unknown & bit) return NVML_ERROR_UNKNOWN;
    return NVML_SUCCESS;
}

// optional is how a call begins that a device need not support.
static nvmlReturn_t optional(nvmlDevice_t d, struct control *c) {
    nvmlReturn_t ret = enter(d, c);
    if (ret == NVML_SUCCESS && (c->bare >> d->gpu & 1)) return NVML_ERROR_NOT_SUPPORTED;
    return ret;
}

static void uuid(nvmlDevice_t d, int swapped, char *out, unsigned n) {
    if (swapped && !d->mig)
        snprintf(out, n, "GPU-00000000-0000-0000-0000-00000000000%u", d->gpu + 8);
    else
        memcpy(out, d->uuid, sizeof d->uuid);
}

static nvmlReturn_t init(void) {
    struct control c;
    control(&c);
    if (c.upgraded) return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    for (unsigned g = 0; g < GPUS; g++) {
        gpus[g] = (struct nvmlDevice_st){g, 0, 0, ""};
        snprintf(gpus[g].uuid, sizeof gpus[g].uuid, "GPU-00000000-0000-0000-0000-00000000000%u", g);
        for (unsigned s = 0; s < SLICES; s++) {
            slices[g][s] = (struct nvmlDevice_st){g, s, 1, ""};
            snprintf(slices[g][s].uuid, sizeof slices[g][s].uuid, "MIG-00000000-0000-0000-0000-0000000000%u%u", g, s);
        }
    }
    memset(sets, 0, sizeof sets);
    opened = c.epoch + 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit(void) { return init(); }
nvmlReturn_t nvmlShutdown(void) { opened = 0; return NVML_SUCCESS; }
const char *nvmlErrorString(nvmlReturn_t ret) { return ret == NVML_SUCCESS ? "fine" : "a text that nobody may rely on"; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned n) {
    struct control c;
    nvmlReturn_t ret = ready(&c);
    if (ret == NVML_SUCCESS) memcpy(out, "570.86.15", sizeof "570.86.15");
    return ret;
}

nvmlReturn_t nvmlDeviceGetCount(unsigned *n) {
    struct control c;
    nvmlReturn_t ret = ready(&c);
    *n = (unsigned)c.gpus;
    return ret;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned i, nvmlDevice_t *out) {
    struct control c;
    nvmlReturn_t ret = ready(&c);
    if (ret != NVML_SUCCESS) return ret;
    if (i >= c.gpus) return NVML_ERROR_INVALID_ARGUMENT;
    if (c.lost >> i & 1) return NVML_ERROR_GPU_IS_LOST;
    *out = &gpus[i];
    return NVML_SUCCESS;
}

// As in NVIDIA's library, no handle is to be had while any GPU is lost.
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *want, nvmlDevice_t *out) {
    struct control c;
    nvmlReturn_t ret = ready(&c);
    if (ret != NVML_SUCCESS) return ret;
    if (c.lost) return NVML_ERROR_GPU_IS_LOST;
    char got[80];
    for (unsigned g = 0; g < c.gpus; g++) {
        uuid(&gpus[g], 0, got, sizeof got);
        if (!strcmp(got, want)) { *out = &gpus[g]; return NVML_SUCCESS; }
        for (unsigned s = 0; s < SLICES && (c.mig >> g & 1); s++) {
            uuid(&slices[g][s], 0, got, sizeof got);
            if (!strcmp(got, want)) { *out = &slices[g][s]; return NVML_SUCCESS; }
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *out, unsigned n) {
    struct control c;
    nvmlReturn_t ret = enter(d, &c);
    if (ret == NVML_SUCCESS) uuid(d, c.swap >> d->gpu & 1, out, n);
    return ret;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *out, unsigned n) {
    struct control c;
    nvmlReturn_t ret = enter(d, &c);
    if (ret == NVML_SUCCESS) snprintf(out, n, "Test library GPU");
    return ret;
}

nvmlReturn_t nvmlDeviceGetVbiosVersion(nvmlDevice_t d, char *out, unsigned n) {
    struct control c;
    nvmlReturn_t ret = optional(d, &c);
    if (ret == NVML_SUCCESS) snprintf(out, n, "96.00.5E.00.01");
    return ret;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, nvmlPciInfo_t *pci) {
    struct control c;
    nvmlReturn_t ret = enter(d, &c);
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x40 + d->gpu;
    return ret;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, nvmlMemory_t *m) {
    struct control c;
    nvmlReturn_t ret = optional(d, &c);
    memset(m, 0, sizeof *m);
    if (ret != NVML_SUCCESS) return ret;
    m->total = d->mig ? 10ull << 30 : 80ull << 30;
    m->used = c.memory;
    m->free = m->total - m->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, nvmlUtilization_t *u) {
    struct control c;
    nvmlReturn_t ret = optional(d, &c);
    if (ret == NVML_SUCCESS && d->mig) return NVML_ERROR_NOT_SUPPORTED;
    if (ret == NVML_SUCCESS) *u = (nvmlUtilization_t){(unsigned)c.util, 0};
    return ret;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t d, unsigned long long *types) {
    struct control c;
    nvmlReturn_t ret = optional(d, &c);
    *types = nvmlEventTypeXidCriticalError;
    return ret;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *out) {
    struct control c;
    nvmlReturn_t ret = ready(&c);
    if (ret != NVML_SUCCESS) return ret;
    for (int i = 0; i < SETS; i++) {
        int free_ = 0;
        if (__atomic_compare_exchange_n(&sets[i].used, &free_, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            sets[i].gpu = -1;
            *out = &sets[i];
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_INSUFFICIENT_RESOURCES;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t s) { s->used = 0; return NVML_SUCCESS; }

// Only what happens after the registration is delivered.
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t d, unsigned long long types, nvmlEventSet_t s) {
    struct control c;
    nvmlReturn_t ret = enter(d, &c);
    if (ret != NVML_SUCCESS) return ret;
    if (d->mig || types != nvmlEventTypeXidCriticalError) return NVML_ERROR_INVALID_ARGUMENT;
    if (c.refuse >> d->gpu & 1) return NVML_ERROR_NO_PERMISSION;
    s->gpu = (int)d->gpu;
    s->deaf = 0;
    s->seen = c.count;
    return NVML_SUCCESS;
}

static nvmlReturn_t wait(nvmlEventSet_t s, nvmlEventData_t *e, unsigned ms) {
    struct control c;
    nvmlReturn_t ret = ready(&c);
    if (ret != NVML_SUCCESS) return ret;
    if (s->gpu < 0) return NVML_ERROR_INVALID_ARGUMENT;
    if (c.deaf >> s->gpu & 1) s->deaf = 1;
    while (s->seen < c.count && !s->deaf) {
        struct error x = c.errors[s->seen++];
        if ((int)x.gpu != s->gpu) continue;
        e->device = &gpus[x.gpu];
        e->eventType = nvmlEventTypeXidCriticalError;
        e->eventData = x.code;
        e->gpuInstanceId = x.gi;
        e->computeInstanceId = x.ci;
        return NVML_SUCCESS;
    }
#ifndef INSTANT
    usleep(ms * 1000);
#endif
    return NVML_ERROR_TIMEOUT;
}

nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t s, nvmlEventData_t *e, unsigned ms) { return wait(s, e, ms); }

#ifndef OLD

nvmlReturn_t nvmlInit_v2(void) { return init(); }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *n) { return nvmlDeviceGetCount(n); }
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned i, nvmlDevice_t *out) { return nvmlDeviceGetHandleByIndex(i, out); }
nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t s, nvmlEventData_t *e, unsigned ms) { return wait(s, e, ms); }

nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned n) {
    snprintf(out, n, "12.570.86.15");
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t d, unsigned long long *mj) {
    struct control c;
    nvmlReturn_t ret = optional(d, &c);
    *mj = c.energy;
    return ret;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t d, int n, nvmlFieldValue_t *v) {
    struct control c;
    nvmlReturn_t ret = optional(d, &c);
    if (ret != NVML_SUCCESS) return ret;
    for (int i = 0; i < n; i++) {
        v[i].nvmlReturn = NVML_SUCCESS;
        v[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        switch (v[i].fieldId) {
        case 269: v[i].value.ullVal = c.soft; break;
        case 270: v[i].value.ullVal = c.hard; break;
        case 271: v[i].value.ullVal = c.brake; break;
        case 230:
            v[i].valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
            v[i].value.uiVal = c.acting >> d->gpu & 1 ? (unsigned)c.action : 0;
            break;
        default: v[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        }
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned *n, nvmlProcessInfo_t *out) {
    struct control c;
    nvmlReturn_t ret = optional(d, &c);
    if (ret != NVML_SUCCESS) return ret;
    unsigned room = *n;
    *n = (unsigned)c.processes;
    if (room < *n) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *n; i++) out[i] = (nvmlProcessInfo_t){.pid = 4242 + i};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t d, unsigned *now, unsigned *pending) {
    struct control c;
    nvmlReturn_t ret = optional(d, &c);
    *now = *pending = c.mig >> d->gpu & 1;
    return ret;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t d, unsigned *n) {
    struct control c;
    *n = 7;
    return enter(d, &c);
}

// The places have holes, as real ones may: slice s is at 2s+1.
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t d, unsigned i, nvmlDevice_t *out) {
    struct control c;
    nvmlReturn_t ret = enter(d, &c);
    if (ret != NVML_SUCCESS) return ret;
    if (i % 2 == 0 || i / 2 >= SLICES) return NVML_ERROR_NOT_FOUND;
    *out = &slices[d->gpu][i / 2];
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t d, nvmlDevice_t *out) {
    struct control c;
    *out = &gpus[d->gpu];
    return enter(d, &c);
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t d, unsigned *is) {
    struct control c;
    *is = (unsigned)d->mig;
    return enter(d, &c);
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t d, unsigned *id) {
    struct control c;
    *id = d->slice + 1;
    return enter(d, &c);
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t d, unsigned *id) {
    struct control c;
    *id = 0;
    return enter(d, &c);
}

#endif
