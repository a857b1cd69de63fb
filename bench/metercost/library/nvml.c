// A libnvidia-ml.so.1 that answers at once, for the benchmark: eight GPUs whose figures grow from call to call. It is not
// NVIDIA's, asks no driver and drives nothing. The one that misbehaves, for tests, is in metering/nvml/testdata.

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NVML_NO_UNVERSIONED_FUNC_DEFS 1
#include "nvml.h"

#define GPUS 8
#define SETS 64

struct nvmlDevice_st { unsigned long long energy; char uuid[48]; };
struct nvmlEventSet_st { int used; };
static struct nvmlDevice_st gpus[GPUS];
static struct nvmlEventSet_st sets[SETS];

// How long a wait for events that do not come takes, in microseconds.
static unsigned idle;
void gpupay_idle(unsigned us) { idle = us; }

// The calls of a tick are counted while somebody asks for it, until it is asked how many there were.
static int counting;
static unsigned count;
unsigned gpupay_count(int on) {
    unsigned was = count;
    counting = on;
    count = 0;
    return was;
}
#define CALLED if (counting) count++

nvmlReturn_t nvmlInit_v2(void) {
    for (int i = 0; i < GPUS; i++) {
        snprintf(gpus[i].uuid, sizeof gpus[i].uuid, "GPU-5b1c9e70-2f4d-4a63-9d18-0e7a6c3f8b%02x", i);
        gpus[i].energy = 71000000000ull * (i + 1); // of a few years
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlShutdown(void) { return NVML_SUCCESS; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned n) {
    CALLED;
    if (n < sizeof "570.86.15") return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, "570.86.15", sizeof "570.86.15");
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *n) { *n = GPUS; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned i, nvmlDevice_t *out) {
    if (i >= GPUS) return NVML_ERROR_INVALID_ARGUMENT;
    *out = &gpus[i];
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *out) {
    for (int i = 0; i < GPUS; i++) {
        if (strcmp(gpus[i].uuid, uuid)) continue;
        *out = &gpus[i];
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *out, unsigned n) {
    CALLED;
    if (n < sizeof d->uuid) return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, d->uuid, sizeof d->uuid);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, nvmlMemory_t *m) {
    CALLED;
    m->total = 80ull << 30;
    m->used = 61ull << 30;
    m->free = m->total - m->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t d, unsigned long long *mj) {
    CALLED;
    *mj = d->energy += 650000; // a second at 650 W
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, nvmlUtilization_t *u) {
    CALLED;
    *u = (nvmlUtilization_t){97, 41};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned *n, nvmlProcessInfo_t *out) {
    CALLED;
    unsigned room = *n;
    *n = 1;
    if (room < 1) return NVML_ERROR_INSUFFICIENT_SIZE;
    out[0] = (nvmlProcessInfo_t){.pid = 4242, .usedGpuMemory = 60ull << 30};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t d, int n, nvmlFieldValue_t *v) {
    CALLED;
    for (int i = 0; i < n; i++) {
        v[i].nvmlReturn = NVML_SUCCESS;
        v[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        v[i].value.ullVal = v[i].fieldId == 230 ? 0 : d->energy / 1000; // 230: what is to be done with the GPU
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t d, unsigned long long *types) {
    *types = nvmlEventTypeXidCriticalError;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *out) {
    for (int i = 0; i < SETS; i++) {
        int unused = 0;
        if (!__atomic_compare_exchange_n(&sets[i].used, &unused, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) continue;
        *out = &sets[i];
        return NVML_SUCCESS;
    }
    return NVML_ERROR_INSUFFICIENT_RESOURCES;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t s) { s->used = 0; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t d, unsigned long long types, nvmlEventSet_t s) { return NVML_SUCCESS; }

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t s, nvmlEventData_t *e, unsigned ms) {
    CALLED;
    if (idle) usleep(idle);
    return NVML_ERROR_TIMEOUT;
}

// go-nvml calls this name when it finds no newer one.
nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t s, nvmlEventData_t *e, unsigned ms) { return nvmlEventSetWait_v2(s, e, ms); }
